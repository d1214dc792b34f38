"""Choosing: scores and a budget become a plan, the units that stay."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import lcm
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from prune.errors import PruneError, unknown
from prune.model import config as configs
from prune.model.groups import HALVES, Group
from prune.model.model import Model

Scope = Literal["layer", "global"]
Normalize = Literal["mean", "standard", "none"]
ALIGNED = ("channels", "traced", "width")  # kinds of which a multiple of so many may be asked


def choose(
    model: Model,
    groups: Sequence[Group],
    scores: Mapping[str, Tensor],
    *,
    ratio: float | None = None,
    count: int | None = None,
    scope: Scope = "layer",
    multiple_of: int = 1,
    protect: Iterable[int | str] = (),
    normalize: Normalize = "mean",
    of: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, list[int]]:
    """The units to keep of each group: the highest-scored ones.

    Give `ratio`, the fraction removed, or `count`, the number removed: of every group with scope "layer" (all layers
    stay alike, a stock checkpoint), of all groups of a kind together with scope "global". Counts that no stock config
    carries move to the nearest that one does, upwards when two are as near; the width comes last, and is one that goes
    with the heads that stay. `multiple_of` holds for the channels kept, and the width.
    `protect` names layers (numbers), kinds ("heads") or groups ("layers.3.heads") that stay whole. With scope
    "global" scores are made comparable between layers: divided by their group's mean, standardised, or left alone.
    Where an earlier round has cut the model, `of` names how many units a group had before it, and `ratio` or `count`
    are of those.
    Raises PruneError when nothing would be left or a name is unknown.
    """
    _check_amount(ratio, count)
    safe, pinned = protected(groups, protect)
    plan: dict[str, list[int]] = {}
    taken: dict[str, int] = {}  # numbers of the config that are settled
    for kind in sorted(dict.fromkeys(group.kind for group in groups), key="width".__eq__):
        own = [group for group in groups if group.kind == kind]
        open_ = [group for group in own if group.name not in safe]
        alike = len(open_) == len(own)
        step = multiple_of if kind in ALIGNED else 1
        if scope == "layer" or own[0].layer is None:
            for group in open_:
                wanted = asked(group, ratio, count, of)
                kept = _count(model, group, wanted, step, taken if alike else None)
                if alike and legal(model, group, kept, taken):
                    taken |= _stated(model, group, kept)
                held = {unit for unit, layer in enumerate(group.places) if layer in pinned}
                plan[group.name] = best(group, scores[group.name], kept, held)
        else:
            plan.update(_globally(open_, scores, ratio, count, step, normalize, of))
    return plan


def _check_amount(ratio: float | None, count: int | None) -> None:
    if ratio is None and count is None:
        raise PruneError(
            "nothing says how much to remove: give a ratio or a count; recipes take a budget or a plan too"
        )
    if ratio is not None and count is not None:
        raise PruneError("ratio and count are both given; leave one out")
    if ratio is not None and not 0 <= ratio < 1:
        raise PruneError(f"ratio is the fraction removed, at least 0 and below 1, not {ratio}")
    if count is not None and count < 0:
        raise PruneError(f"count is the number removed, at least 0, not {count}")


def protected(groups: Sequence[Group], protect: Iterable[int | str]) -> tuple[set[str], set[int]]:
    """The groups that stay whole, and the layers that may not be dropped."""
    whole: set[str] = set()
    pinned: set[int] = set()
    for item in protect:
        text = str(item).removeprefix("layers.")
        number = int(text) if text.isdigit() else None
        inside = {g.name for g in groups if g.layer is not None and g.layer == number}
        named = {g.name for g in groups if item in (g.name, g.kind)}
        layers = {number} if any(number in g.places for g in groups) else set()
        if not inside | named and not layers:
            raise PruneError(
                unknown("group or layer to protect", item, {g.kind for g in groups} | {g.name for g in groups}).message
            )
        whole |= inside | named
        pinned |= {n for n in layers if n is not None}
    return whole, pinned


def asked(group: Group, ratio: float | None, count: int | None, of: Mapping[str, int] = MappingProxyType({})) -> int:
    """How many units of a group should stay, were every count legal; `ratio` and `count` are as in `choose`."""
    first = of.get(group.name, group.units)
    wanted = first - (count if count is not None else round(first * (ratio or 0.0)))
    if wanted < 1:
        raise PruneError(f"removing {first - wanted} of {first} leaves nothing", where=group.name)
    return min(wanted, group.units)


def _count(model: Model, group: Group, wanted: int, step: int, taken: Mapping[str, int] | None) -> int:
    """How many units of a group stay: the legal count nearest to the one asked for; any if `taken` is None."""
    if wanted == group.units:
        return wanted
    nearest = sorted(structural(group, step), key=lambda n: (abs(n - wanted), -n))
    if taken is None:
        return nearest[0]
    found = next(n for n in nearest if n == group.units or legal(model, group, n, taken))
    if found < group.units or any(legal(model, group, n, taken) for n in nearest if n < group.units):
        return found
    return nearest[0]  # no stock form at all: a checkpoint whose layers differ


def structural(group: Group, step: int = 1) -> list[int]:
    """Counts of kept units that partitions and alignment allow, ascending; all of them is always one."""
    parts = len(group.partitions)
    least, step = max(group.minimum, parts), lcm(step, group.multiple)
    return [n for n in range(least, group.units + 1) if n % parts == 0 and (n // parts % step == 0 or n == group.units)]


def lowest_removed(group: Group, scores: Tensor, ratio: float, step: int = 1) -> list[int]:
    """The units that stay when about `ratio` of a group's lowest-scored ones go, equally many of each partition."""
    allowed = structural(group, step)
    kept = min(allowed, key=lambda count: abs(count - group.units * (1 - ratio)))
    each = kept // len(group.partitions)
    best = [sorted(part, key=lambda unit: -scores[unit].item())[:each] for part in group.partitions]
    return sorted(unit for part in best for unit in part)


def legal(model: Model, group: Group, kept: int, taken: Mapping[str, int] = MappingProxyType({})) -> bool:
    """Whether a stock config carries this many units in every layer, beside the numbers that are `taken`."""
    if group.kind in ("layers", "traced", *HALVES):
        return True
    numbers = _stated(model, group, kept)
    if numbers:
        return configs.accepts(model, **{**taken, **numbers})
    number = "expert_channels" if model.sizes(group.layer or 0)["experts"] and group.kind == "channels" else group.kind
    return kept == group.units or number not in model.family.fixed


def _stated(model: Model, group: Group, kept: int) -> dict[str, int]:
    """The numbers of the config that have to go with one another, as this many units make them."""
    if group.kind == "width":
        return {"width": kept}
    if group.kind not in ("heads", "query_heads"):
        return {}
    sizes = model.sizes(group.layer or 0)
    if group.kind == "heads":
        return {"kv_heads": kept, "heads": kept * (sizes["heads"] // sizes["kv_heads"])}
    return {"kv_heads": sizes["kv_heads"], "heads": kept}


def best(group: Group, scores: Tensor, kept: int, pinned: Collection[int] = ()) -> list[int]:
    """The `kept` highest units, equally many of each partition; of equals, the earlier ones stay."""
    scores = scores.float().clone()
    if pinned:
        if len(pinned) > kept:
            raise PruneError(f"{len(pinned)} units are protected, but only {kept} would stay", where=group.name)
        scores[sorted(pinned)] = torch.inf
    each = kept // len(group.partitions)
    chosen: list[int] = []
    for partition in group.partitions:
        members = torch.tensor(partition)
        order = torch.argsort(scores[members], descending=True, stable=True)
        chosen += members[order[:each]].tolist()
    return sorted(chosen)


def _globally(
    groups: Sequence[Group],
    scores: Mapping[str, Tensor],
    ratio: float | None,
    count: int | None,
    step: int,
    normalize: Normalize,
    of: Mapping[str, int],
) -> dict[str, list[int]]:
    """One ranking over all groups of a kind; every group keeps at least one unit of each partition."""
    first = sum(of.get(group.name, group.units) for group in groups)
    gone = first - sum(group.units for group in groups)
    wanted = (count if count is not None else round(first * (ratio or 0.0))) - gone
    removed = _lowest(groups, scores, max(wanted, 0), normalize)
    plan = {}
    for group in groups:
        allowed = structural(group, step)
        target = group.units - removed[group.name]
        kept = min(allowed, key=lambda n: (abs(n - target), -n))
        plan[group.name] = best(group, scores[group.name], kept)
    return plan


def _lowest(groups: Sequence[Group], scores: Mapping[str, Tensor], wanted: int, normalize: Normalize) -> dict[str, int]:
    """How many of the `wanted` lowest-scored units lie in each group."""
    removed = dict.fromkeys((group.name for group in groups), 0)
    room = {group.name: group.units - max(group.minimum, len(group.partitions)) for group in groups}
    if wanted > sum(room.values()):
        raise PruneError(f"removing {wanted} of {sum(g.units for g in groups)} leaves some layer with nothing")
    entries = [
        (value, number, len(group.partitions))
        for number, group in enumerate(groups)
        for value in _bundles(group, _normalized(scores[group.name], normalize))
    ]
    for _, number, size in sorted(entries):
        name = groups[number].name
        if size <= wanted and removed[name] + size <= room[name]:
            removed[name] += size
            wanted -= size
    return removed


def _bundles(group: Group, scores: Tensor) -> list[float]:
    """Mean scores of what goes together: the lowest unit of every partition, the next lowest of every one, ..."""
    return torch.stack([scores[list(part)].sort().values for part in group.partitions]).mean(0).tolist()


def _normalized(scores: Tensor, normalize: Normalize) -> Tensor:
    scores = scores.float()
    if normalize == "mean":
        return scores / scores.mean().clamp_min(torch.finfo(torch.float32).tiny)
    if normalize == "standard":
        return (scores - scores.mean()) / scores.std(correction=0).clamp_min(torch.finfo(torch.float32).tiny)
    return scores
