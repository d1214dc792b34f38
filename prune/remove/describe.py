"""What a cut removed, in words, and what a person should know about how it was done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prune.model.family import PREFIX
from prune.model.groups import Group
from prune.model.model import Model

Plan = Mapping[str, Sequence[int]]
NEARLY = 0.99  # of a budget: what lands below it has left room


def in_words(groups: Sequence[Group], plan: Plan, *, named: bool = True) -> dict[str, str]:
    """Kind -> what went, as in "128 of 512 in each of 6 layers". With `named`, removed layers are listed."""
    words = {}
    for kind in dict.fromkeys(group.kind for group in groups):
        own = [group for group in groups if group.kind == kind and group.name in plan]
        words[kind] = _spanning(own[0], plan, named) if own and own[0].layer is None else _in_layers(own, plan)
    return words


def _spanning(group: Group, plan: Plan, named: bool) -> str:
    gone = sorted(set(range(group.units)) - set(plan[group.name]))
    if group.kind == "width":
        return f"{len(gone)} of {group.units}"
    gone = [group.places[unit] for unit in gone]
    which = f": {', '.join(map(str, gone))}" if named and gone else ""
    return f"{len(gone)} of {group.units}{which}"


def _in_layers(own: Sequence[Group], plan: Plan) -> str:
    lost = [group.units - len(plan[group.name]) for group in own]
    if not own:
        return "none"
    if len(set(lost)) == 1 and len({group.units for group in own}) == 1:
        return f"{lost[0]} of {own[0].units} in each of {len(own)} layers"
    return f"{sum(lost)} of {sum(group.units for group in own)}, {min(lost)} to {max(lost)} a layer"


def notes(
    big: Model,
    small: Model,
    groups: Sequence[Group],
    plan: Plan,
    *,
    ratio: float | None = None,
    count: int | None = None,
    scope: str = "layer",
    budget: Mapping[Any, float] | None = None,
    landed: Mapping[str, float] | None = None,
) -> list[str]:
    """Where the type changed, where counts were moved to ones that a stock config carries, and a budget's unused room.

    `landed` are the shares that a plan within the `budget` comes to.
    """
    found = _type_note(big.config.model_type, small.config.model_type)
    found += _room_note(budget or {}, landed or {})
    if scope == "layer" and (ratio is not None or count is not None):
        for kind in dict.fromkeys(group.kind for group in groups):
            group = next((g for g in groups if g.kind == kind and g.name in plan), None)
            if group is not None:
                asked = count if count is not None else round(group.units * (ratio or 0))
                lost = group.units - len(plan[group.name])
                if lost != asked:
                    found.append(
                        f"{kind}: {lost} of {group.units} removed, not the {asked} asked for: the nearest that fits"
                    )
    return found


def _room_note(budget: Mapping[str, float], landed: Mapping[str, float]) -> list[str]:
    """Said where no cost comes within a hundredth of what it may be."""
    used = {name: landed[name] / budget[name] for name in budget if name in landed}
    if not used or max(used.values()) >= NEARLY:
        return []
    name = max(used, key=used.__getitem__)
    return [f"{name}: {landed[name]:.3f} of the model stays, not the {budget[name]:g} that may: no larger shape fits"]


def _type_note(before: str, after: str) -> list[str]:
    if before == after:
        return []
    if after.startswith(PREFIX):
        return [
            f"saved as {after}: layers differ, so it loads with prune.load, or the Auto classes once prune is imported"
        ]
    return [f"saved as {after}: {before} refuses this shape; {after} computes the same and stock transformers loads it"]
