"""Pruning in several rounds: remove a bit, score what is left anew, go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from prune.model.model import Model
from prune.remove.cut import Plan


def iterate(
    model: Model,
    plan_for: Callable[[Model, float], Plan],
    shrink: Callable[[Plan], Model],
    *,
    ratio: float,
    iterations: int,
) -> Plan:
    """The plan, in the model's own units, that `iterations` rounds arrive at.

    `plan_for(model, ratio)` scores and chooses on what is left, `shrink(plan)` cuts the first model by the plan so far
    (and refits it, if that is wanted). Every round removes the same share of the first model's units.
    """
    plan: Plan = {}
    current = model
    for number in range(1, iterations + 1):
        before, after = 1 - ratio * (number - 1) / iterations, 1 - ratio * number / iterations
        plan = compose(plan, plan_for(current, 1 - after / before))
        if number < iterations:
            current = shrink(plan)
    return plan


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
