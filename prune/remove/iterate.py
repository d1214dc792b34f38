"""Pruning in several rounds: remove a bit, score what is left anew, go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from prune.model.model import Model
from prune.remove.cut import Plan


def iterate(
    model: Model,
    plan_for: Callable[[Model, float, Mapping[str, int]], Plan],
    shrink: Callable[[Plan], Model],
    *,
    ratio: float,
    iterations: int,
    units: Mapping[str, int],
) -> Plan:
    """The plan, in the model's own units, that `iterations` rounds arrive at.

    `plan_for(model, ratio, of)` scores and chooses on what is left, so that in all `ratio` of the units `of` each group
    of the first model is gone; `shrink(plan)` cuts that model by the plan so far (and refits it, if that is wanted).
    `units` are the first model's, by group. Every round removes the same share of them, and the last one ends where a
    single round would: nothing is rounded twice.
    """
    plan: Plan = {}
    current = model
    for number in range(1, iterations + 1):
        plan = compose(plan, plan_for(current, ratio * number / iterations, renamed(units, plan)))
        if number < iterations and any(len(kept) < units[name] for name, kept in plan.items()):
            current = shrink(plan)
    return plan


def renamed(units: Mapping[str, int], plan: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """What is said of the groups of a model, by the names they have once a plan has dropped layers."""
    layers = plan.get("layers")
    if layers is None:
        return dict(units)
    new = {layer: number for number, layer in enumerate(layers)}
    found = {}
    for name, value in units.items():
        layer = _layer(name)
        if layer is None:
            found[name] = value
        elif layer in new:
            found[f"layers.{new[layer]}.{name.rsplit('.', 1)[1]}"] = value
    return found


def compose(first: Mapping[str, Sequence[int]], then: Mapping[str, Sequence[int]]) -> Plan:
    """One plan for two cuts: `then` counts the units and layers that `first` has left."""
    layers = first.get("layers")
    found = {name: list(kept) for name, kept in first.items()}
    for name, kept in then.items():
        own = name
        if layers is not None and name.startswith("layers."):
            _, number, kind = name.split(".")
            own = f"layers.{layers[int(number)]}.{kind}"
        found[own] = [first[own][unit] for unit in kept] if own in first else list(kept)
    gone = set() if "layers" not in found else {name for name in found if _layer(name) not in (None, *found["layers"])}
    return {name: kept for name, kept in found.items() if name not in gone}


def _layer(name: str) -> int | None:
    parts = name.split(".")
    return int(parts[1]) if len(parts) == 3 else None
