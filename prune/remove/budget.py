"""Budgets: how many units of each group go, so that a model of a given size loses least.

A group's error curve is how much is lost as its lowest-scored units go; costs are what the units weigh. Uniform plans
are searched on the grid of stock shapes; plans by layer are a knapsack: dynamic programming for one budget, a mixed
integer program for several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prune.errors import PruneError, unknown
from prune.measure import layer_flops
from prune.model.groups import Group
from prune.model.model import Model
from prune.model.walk import Batch, logits
from prune.remove.choose import legal, structural
from prune.remove.cut import Plan, cut
from prune.remove.divergence import divergence
from prune.remove.sensitivity import lowest_removed

BINS = 4096  # of the cost axis in dynamic programming
LEVELS = 24  # sizes tried for each group by layer
BEST = 6  # shapes of the grid that are judged
CONTEXT = 1024  # tokens at which attention's FLOPs are counted


def _flops(model: Model) -> float:
    layers = sum(sum(layer_flops(model, layer, CONTEXT)) for layer in range(model.numbers["layers"]))
    return layers + 2.0 * getattr(model.config, "vocab_size", 0) * model.numbers["width"]


COSTS: dict[str, Callable[[Model], float]] = {
    "params": lambda model: float(model.tensors.parameters),
    "bytes": lambda model: float(model.tensors.bytes),
    "flops": _flops,
}


def allocate(
    model: Model,
    groups: Sequence[Group],
    scores: Mapping[str, Tensor],
    *,
    budget: Mapping[str, float],
    uniform: bool = True,
    weights: Mapping[str, float] | None = None,
    judge: Callable[[Plan], float] | None = None,
    finished: Callable[[Model], Model] | None = None,
) -> Plan:
    """The plan that loses least within `budget`, the shares of params, bytes or FLOPs that may stay.

    `groups` lie in layers; `scores` are error curves, as criterion `obs` gives them. With
    `uniform` all layers keep as many, shapes are those a stock config carries, and the best few by their curves are
    ranked by `judge(plan)`. Without, each layer has its own; `weights` say by group how much a unit of error matters.
    What `finished` adds to a model after the cut (biases, say) is kept free. Raises PruneError when the budget cannot
    be met, with the smallest that can.
    """
    limits = _limits(model, budget)
    if finished is not None:
        whole = finished(model)
        limits = {name: limit - COSTS[name](whole) + COSTS[name](model) for name, limit in limits.items()}
    if uniform:
        plan = _on_grid(model, groups, scores, limits, judge)
    else:
        plan = _by_layer(model, groups, scores, limits, weights or {})
    if plan is None:
        raise PruneError(f"the budget cannot be met: {_smallest(model, groups, scores, limits)}", where="budget")
    return plan


def _limits(model: Model, budget: Mapping[str, float]) -> dict[str, float]:
    for name, share in budget.items():
        if name not in COSTS:
            raise unknown("budget", name, COSTS)
        if not 0 < share <= 1:
            raise PruneError(
                f"the share of {name} that stays must be above 0 and at most 1, not {share}", where="budget"
            )
    return {name: share * COSTS[name](model) for name, share in budget.items()}


def _smallest(model: Model, groups: Sequence[Group], scores: Mapping[str, Tensor], limits: Mapping[str, float]) -> str:
    least = cut(model, {g.name: lowest_removed(g, scores[g.name], 1.0) for g in groups})
    parts = [f"{name} {COSTS[name](least) / COSTS[name](model):.3f}" for name in limits]
    return f"with these kinds of groups the smallest is {', '.join(parts)}"


def added_up(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Plain scores as error curves: each unit's is the sum of those that go before it and its own."""
    found = {}
    for name, own in scores.items():
        values, order = own.float().sort(stable=True)
        found[name] = torch.zeros_like(values).scatter(0, order, values.cumsum(0))
    return found


def matters(
    model: Model, groups: Sequence[Group], scores: Mapping[str, Tensor], batches: Sequence[Batch], **options: Any
) -> dict[str, float]:
    """KL divergence per unit of error, by group, measured by halving each alone; `options` are those of `walk`."""
    expected = list(logits(model, batches, **options))
    found = {}
    for group in groups:
        kept = lowest_removed(group, scores[group.name], 0.5)
        lost = divergence(cut(model, {group.name: kept}), model, batches, expected=expected, **options)
        found[group.name] = lost / max(curve(scores[group.name])[group.units - len(kept)].item(), 1e-30)
    return found


def curve(scores: Tensor) -> Tensor:
    """What is lost when 0, 1, 2, ... of the lowest-scored units are gone: float64 (units + 1,).

    Scores of a greedy run are the errors so far.
    """
    lost = scores.double().sort().values
    return torch.cat([torch.zeros(1, dtype=torch.float64), lost])


def _fits(model: Model, plan: Plan, limits: Mapping[str, float]) -> bool:
    small = cut(model, plan)
    return all(COSTS[name](small) <= limit for name, limit in limits.items())


def _on_grid(
    model: Model,
    groups: Sequence[Group],
    scores: Mapping[str, Tensor],
    limits: Mapping[str, float],
    judge: Callable[[Plan], float] | None,
) -> Plan | None:
    """Every legal count of the coarse kinds, each with as many units of the finest kind as the budget leaves."""
    kinds = list(dict.fromkeys(group.kind for group in groups))
    first = {kind: next(group for group in groups if group.kind == kind) for kind in kinds}
    counts = {kind: [n for n in structural(g) if n >= g.minimum and legal(model, g, n)] for kind, g in first.items()}
    finest = max(kinds, key=lambda kind: len(counts[kind]))
    others = [kind for kind in kinds if kind != finest]
    found: list[tuple[float, Plan]] = []
    for combination in product(*(counts[kind] for kind in others)):
        chosen = dict(zip(others, combination, strict=True))
        most = _most(model, groups, scores, chosen, finest, counts[finest], limits)
        if most is not None:
            plan = _plan(groups, scores, {**chosen, finest: most})
            found.append((sum(_relative(scores[g.name], len(plan[g.name])) for g in groups), plan))
    found = sorted(found, key=lambda entry: entry[0])[:BEST]
    if not found:
        return None
    return min(found, key=lambda entry: entry[0] if judge is None else judge(entry[1]))[1]


def _most(
    model: Model,
    groups: Sequence[Group],
    scores: Mapping[str, Tensor],
    chosen: Mapping[str, int],
    finest: str,
    counts: Sequence[int],
    limits: Mapping[str, float],
) -> int | None:
    """The largest count of the finest kind that fits, by bisection."""
    low, high = -1, len(counts) - 1
    while low < high:
        middle = (low + high + 1) // 2
        fits = _fits(model, _plan(groups, scores, {**chosen, finest: counts[middle]}), limits)
        low, high = (middle, high) if fits else (low, middle - 1)
    return counts[low] if low >= 0 else None


def _plan(groups: Sequence[Group], scores: Mapping[str, Tensor], kept: Mapping[str, int]) -> Plan:
    return {g.name: lowest_removed(g, scores[g.name], 1 - kept[g.kind] / g.units) for g in groups}


def _relative(scores: Tensor, kept: int) -> float:
    lost = curve(scores)
    return (lost[len(scores) - kept] / lost[-1].clamp_min(1e-30)).item()


def _by_layer(
    model: Model,
    groups: Sequence[Group],
    scores: Mapping[str, Tensor],
    limits: Mapping[str, float],
    weights: Mapping[str, float],
) -> Plan | None:
    """Sizes of each group by knapsack, then as many units more as still fit."""
    sizes = [_levels(group) for group in groups]
    lost = [
        np.array([weights.get(g.name, 1.0) * curve(scores[g.name])[g.units - n].item() for n in own])
        for g, own in zip(groups, sizes, strict=True)
    ]
    saved = {name: list(_saved(model, groups, sizes, COSTS[name])) for name in limits}
    needed = {name: COSTS[name](model) - limit for name, limit in limits.items()}
    if len(limits) == 1:
        (name,) = limits
        picks = knapsack(lost, saved[name], needed[name])
    else:
        picks = program(lost, [saved[name] for name in limits], [needed[name] for name in limits])
    if picks is None:
        return None
    kept = {g.name: own[pick] for g, own, pick in zip(groups, sizes, picks, strict=True)}
    return _filled(model, groups, scores, kept, limits)


def _levels(group: Group) -> list[int]:
    """Counts to try for a group, all of it first."""
    allowed = sorted((n for n in structural(group) if n >= group.minimum), reverse=True)
    step = max(1, -(-len(allowed) // LEVELS))
    return list(dict.fromkeys([*allowed[::step], allowed[-1]]))


def _saved(
    model: Model, groups: Sequence[Group], sizes: Sequence[Sequence[int]], cost: Callable[[Model], float]
) -> Iterator[np.ndarray]:
    """What each size of each group saves; costs are linear in a group's units, so that two cuts say it all."""
    whole = cost(model)
    for group, own in zip(groups, sizes, strict=True):
        fewest = sorted(unit for part in group.partitions for unit in part[: own[-1] // len(group.partitions)])
        each = (whole - cost(cut(model, {group.name: fewest}))) / max(group.units - own[-1], 1)
        yield np.array([each * (group.units - n) for n in own])


def knapsack(lost: Sequence[np.ndarray], saved: Sequence[np.ndarray], needed: float) -> list[int] | None:
    """The option of each group that together save at least `needed` and lose least; None when nothing does.

    Savings are rounded down to 1/4096 of what is needed, so that the result never saves too little.
    """
    if needed <= 0:
        return [0] * len(lost)
    steps = [np.minimum((own / needed * BINS).astype(int), BINS) for own in saved]
    best = np.full(BINS + 1, np.inf)
    best[0] = 0.0
    picks = np.zeros((len(lost), BINS + 1), dtype=int)
    origin = np.zeros((len(lost), BINS + 1), dtype=int)
    for row, (costs, gains) in enumerate(zip(lost, steps, strict=True)):
        new = np.full(BINS + 1, np.inf)
        for option, (cost, gain) in enumerate(zip(costs, gains, strict=True)):
            target = np.minimum(np.arange(BINS + 1) + gain, BINS)
            for start in np.flatnonzero(np.isfinite(best)):
                if best[start] + cost < new[target[start]]:
                    new[target[start]] = best[start] + cost
                    picks[row, target[start]], origin[row, target[start]] = option, start
        best = new
    if not np.isfinite(best[BINS]):
        return None
    chosen, at = [], BINS
    for row in reversed(range(len(lost))):
        chosen.append(int(picks[row, at]))
        at = int(origin[row, at])
    return chosen[::-1]


def program(
    lost: Sequence[np.ndarray], saved: Sequence[Sequence[np.ndarray]], needed: Sequence[float]
) -> list[int] | None:
    """The same for several budgets at once, as a mixed integer program; needs scipy."""
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp  # type: ignore[import-untyped,unused-ignore]
    except ModuleNotFoundError:
        raise PruneError("several budgets at once need scipy: pip install scipy", where="budget") from None
    ends = np.cumsum([len(own) for own in lost])
    once = np.zeros((len(lost), ends[-1]))
    for row, end in enumerate(ends):
        once[row, end - len(lost[row]) : end] = 1
    scale = [max(need, 1.0) for need in needed]
    gains = np.array([np.concatenate(list(own)) / s for own, s in zip(saved, scale, strict=True)])
    enough = [need / s for need, s in zip(needed, scale, strict=True)]
    cost = np.concatenate(list(lost))
    found = milp(
        cost / max(cost.max(), 1e-30),
        integrality=np.ones(ends[-1]),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(once, 1, 1), LinearConstraint(gains, enough, np.inf)],
    )
    if found.x is None:
        return None
    return [int(found.x[end - len(own) : end].argmax()) for own, end in zip(lost, ends, strict=True)]


def _filled(
    model: Model,
    groups: Sequence[Group],
    scores: Mapping[str, Tensor],
    kept: dict[str, int],
    limits: Mapping[str, float],
) -> Plan:
    """The plan for these sizes, grown by channels layer after layer while the budget holds."""

    def plan(sizes: Mapping[str, int]) -> Plan:
        return {g.name: lowest_removed(g, scores[g.name], 1 - sizes[g.name] / g.units) for g in groups}

    for group in sorted(groups, key=lambda g: -g.units):
        allowed = [n for n in structural(group) if n >= kept[group.name]]
        low, high = 0, len(allowed) - 1
        while low < high:
            middle = (low + high + 1) // 2
            fits = _fits(model, plan({**kept, group.name: allowed[middle]}), limits)
            low, high = (middle, high) if fits else (low, middle - 1)
        kept[group.name] = allowed[low]
    return plan(kept)
