"""Budgets: how many units of each group go, so that a model of a given size loses least.

A group's error curve is how much is lost as its lowest-scored units go; costs are what the units weigh. Uniform plans
are searched on the grid of stock shapes; plans by layer are a knapsack: dynamic programming for one budget, a mixed
integer program for several.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prune.errors import PruneError, unknown
from prune.model.groups import Group
from prune.model.model import Model
from prune.model.walk import Batch, logits
from prune.remove.choose import ALIGNED, legal, lowest_removed, protected, structural
from prune.remove.costs import COSTS, LINEAR, Cost
from prune.remove.cut import Plan, cut
from prune.remove.divergence import divergence
from prune.remove.knapsack import knapsack, program

LEVELS = 24  # sizes tried for each group by layer
COARSE = 8  # sizes tried on the grid for kinds that are not the finest
BEST = 6  # shapes of the grid that are judged
Sizes = dict[str, int]  # kept units by group


@dataclass(frozen=True)
class Problem:
    """What is to be shared out: groups with their error curves, and what each cost may be at most.

    `limits` hold for the cut alone: `added` is what comes on top of it afterwards. `uneven` are kinds of which some
    layers are protected, so that the others need not be what a stock config carries. Channels, and the width, stay a
    multiple of `step`.
    """

    model: Model
    groups: Sequence[Group]
    scores: Mapping[str, Tensor]
    limits: Mapping[str, float]
    costs: Mapping[str, Cost]
    added: Mapping[str, float]
    step: int = 1
    uneven: frozenset[str] = frozenset()

    def plan(self, sizes: Mapping[str, int]) -> Plan:
        """The plan that keeps the best-scored units, so many of each group."""
        return {
            g.name: lowest_removed(g, self.scores[g.name], 1 - sizes[g.name] / g.units, self._step(g))
            for g in self.groups
        }

    def fits(self, sizes: Mapping[str, int]) -> bool:
        small = cut(self.model, self.plan(sizes))
        return all(self.costs[name](small) <= limit for name, limit in self.limits.items())

    def shares(self, sizes: Mapping[str, int]) -> dict[str, float]:
        """What the sizes come to by each cost of the budget, as shares of the model, what is added later included."""
        small = cut(self.model, self.plan(sizes))
        return {
            name: (self.costs[name](small) + self.added[name]) / self.costs[name](self.model) for name in self.limits
        }

    def counts(self, group: Group) -> list[int]:
        """How many units of a group may stay, ascending; all of them last."""
        return structural(group, self._step(group))

    def alike(self) -> dict[str, list[int]]:
        """By kind, how many units all layers may keep: what a stock config carries, where it carries less than all.

        Where no kind has such a count, as in `choose`, all that there are: a checkpoint whose layers differ by type.
        """
        first = {group.kind: group for group in reversed(self.groups)}
        stock = {
            kind: [n for n in self.counts(g) if n == g.units or kind in self.uneven or legal(self.model, g, n)]
            for kind, g in first.items()
        }
        return stock if any(len(own) > 1 for own in stock.values()) else {k: self.counts(g) for k, g in first.items()}

    def least(self, *, uniform: bool) -> Sizes:
        """The smallest sizes there are."""
        if not uniform:
            return {group.name: self.counts(group)[0] for group in self.groups}
        fewest = {kind: own[0] for kind, own in self.alike().items()}
        return {group.name: fewest[group.kind] for group in self.groups}

    def _step(self, group: Group) -> int:
        return self.step if group.kind in ALIGNED else 1

    def most(self, allowed: Sequence[int], sizes: Callable[[int], Sizes]) -> int | None:
        """The largest of some ascending counts whose `sizes` fit, by bisection; None when none does."""
        low, high = -1, len(allowed) - 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.fits(sizes(allowed[middle])) else (low, middle - 1)
        return allowed[low] if low >= 0 else None

    def filled(self, sizes: Mapping[str, int]) -> Sizes:
        """The sizes grown, finest groups first, while the budget holds."""
        kept = dict(sizes)
        for group in sorted(self.groups, key=lambda g: -g.units):
            allowed = [n for n in self.counts(group) if n >= kept[group.name]]
            found = self.most(allowed[1:], lambda n, name=group.name: {**kept, name: n})  # type: ignore[misc]
            kept[group.name] = found or kept[group.name]
        return kept


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
    costs: Mapping[str, Cost] = COSTS,
    multiple_of: int = 1,
    protect: Iterable[int | str] = (),
) -> Plan:
    """The plan that loses least within `budget`, the shares of params, bytes, FLOPs (or other `costs`) that may stay.

    `groups` lie in layers (or, with `uniform`, are the width); `scores` are error curves, as criterion `obs` gives
    them. With `uniform` all layers keep as many, shapes are those a stock config carries, and the best few by their
    curves are ranked by `judge(plan)`. Without, each layer has its own; `weights` say by group how much a unit of error
    matters. What `finished` adds to a model after the cut (biases, say) is kept free. `multiple_of` and `protect` are
    as in `choose`; what is protected is no part of the plan. Raises PruneError when the budget cannot be met, with the
    smallest that can.
    """
    bounds: dict[str, Any] = {"multiple_of": multiple_of, "protect": protect}
    asked = problem(model, groups, scores, budget, finished=finished, costs=costs, **bounds)
    check_met(asked, uniform=uniform)
    return asked.plan(on_grid(asked, judge) if uniform else by_layer(asked, weights or {}))


def problem(
    model: Model,
    groups: Sequence[Group],
    scores: Mapping[str, Tensor],
    budget: Mapping[str, float],
    *,
    finished: Callable[[Model], Model] | None = None,
    costs: Mapping[str, Cost] = COSTS,
    multiple_of: int = 1,
    protect: Iterable[int | str] = (),
) -> Problem:
    """What a budget asks; options are those of `allocate`.

    Raises PruneError for an unknown cost, a share that is none, a budget of nothing, and when all is protected.
    """
    if not budget:
        raise PruneError("an empty budget asks for nothing; give a share, as in {params: 0.6}", where="budget")
    for name, share in budget.items():
        if name not in costs:
            raise unknown("budget", name, costs)
        if not 0 < share <= 1:
            raise PruneError(
                f"the share of {name} that stays must be above 0 and at most 1, not {share}", where="budget"
            )
    whole = model if finished is None else finished(model)
    added = {name: costs[name](whole) - costs[name](model) for name in budget}
    limits = {name: share * costs[name](model) - added[name] for name, share in budget.items()}
    safe, _ = protected(groups, protect)
    left = [group for group in groups if group.name not in safe]
    if not left:
        raise PruneError("every group is protected, so that nothing can go", where="protect")
    uneven = frozenset(group.kind for group in groups if group.name in safe)
    return Problem(model, left, scores, limits, costs, added, multiple_of, uneven)


def check_met(asked: Problem, *, uniform: bool) -> None:
    """PruneError for a budget that the smallest sizes exceed, with what they come to, rounded up."""
    least = asked.least(uniform=uniform)
    if asked.fits(least):
        return
    shares = asked.shares(least)
    parts = ", ".join(f"{name} {math.ceil(share * 1000) / 1000:.3f}" for name, share in shares.items())
    raise PruneError(f"the budget cannot be met: with these kinds of groups the smallest is {parts}", where="budget")


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


def on_grid(asked: Problem, judge: Callable[[Plan], float] | None) -> Sizes:
    """Every legal count of the coarse kinds, each with as many units of the finest kind as the budget leaves.

    The budget is one that the smallest sizes meet.
    """
    first = {group.kind: group for group in reversed(asked.groups)}
    counts = asked.alike()
    inside = [kind for kind in first if first[kind].layer is not None]
    finest = max(inside or first, key=lambda kind: len(counts[kind]))
    others = {kind: _spread(counts[kind], COARSE) for kind in first if kind != finest}
    found: list[tuple[float, Sizes]] = []
    for combination in product(*others.values()):
        chosen = dict(zip(others, combination, strict=True))

        def sizes(n: int, chosen: Sizes = chosen) -> Sizes:
            return {g.name: {**chosen, finest: n}[g.kind] for g in asked.groups}

        most = asked.most(counts[finest], sizes)
        if most is not None:
            found.append((_lost(asked, sizes(most)), sizes(most)))
    stock = [entry for entry in found if cut(asked.model, asked.plan(entry[1])).uniform] or found
    best = sorted(stock, key=lambda entry: entry[0])[:BEST]
    assert best, "the smallest sizes are on the grid"
    return min(best, key=lambda entry: entry[0] if judge is None else judge(asked.plan(entry[1])))[1]


def _spread(counts: Sequence[int], most: int) -> list[int]:
    """At most so many of some ascending counts, evenly, the last one among them."""
    return [counts[i] for i in sorted({round(i) for i in np.linspace(0, len(counts) - 1, min(most, len(counts)))})]


def _lost(asked: Problem, sizes: Sizes) -> float:
    """The sum of the shares of each group's error; a group that spans the model counts for every layer."""
    total = 0.0
    for group in asked.groups:
        lost = curve(asked.scores[group.name])
        share = (lost[max(group.units - sizes[group.name], 0)] / lost[-1].clamp_min(1e-30)).item()
        total += share * (1 if group.layer is not None else asked.model.numbers["layers"])
    return total


def by_layer(asked: Problem, weights: Mapping[str, float]) -> Sizes:
    """Sizes of each group by knapsack, then as many units more as still fit.

    The budget is one that the smallest sizes meet; they are the start where rounding leaves the knapsack nothing.
    """
    levels = [_levels(asked.counts(group)) for group in asked.groups]
    lost = [
        np.array([weights.get(g.name, 1.0) * curve(asked.scores[g.name])[g.units - n].item() for n in own])
        for g, own in zip(asked.groups, levels, strict=True)
    ]
    saved = {name: list(_saved(asked, levels, name)) for name in asked.limits}
    needed = {name: asked.costs[name](asked.model) - limit for name, limit in asked.limits.items()}
    if len(needed) == 1:
        (name,) = needed
        picks = knapsack(lost, saved[name], needed[name])
    else:
        picks = program(lost, list(saved.values()), list(needed.values()))
    picked = picks or [len(own) - 1 for own in levels]
    sizes = {g.name: own[pick] for g, own, pick in zip(asked.groups, levels, picked, strict=True)}
    return asked.filled(sizes if asked.fits(sizes) else asked.least(uniform=False))


def _levels(counts: Sequence[int]) -> list[int]:
    """Counts to try of those a group may keep, all of it first."""
    allowed = list(reversed(counts))
    step = max(1, -(-len(allowed) // LEVELS))
    return list(dict.fromkeys([*allowed[::step], allowed[-1]]))


def _saved(asked: Problem, levels: Sequence[Sequence[int]], name: str) -> Iterator[np.ndarray]:
    """What each size of each group saves: measured for each, or by two cuts where every unit saves as much."""
    cost = asked.costs[name]
    whole = cost(asked.model)
    for group, own in zip(asked.groups, levels, strict=True):
        measured = own[-1:] if name in LINEAR else own

        def saving(n: int, group: Group = group) -> float:
            fewest = sorted(unit for part in group.partitions for unit in part[: n // len(group.partitions)])
            return whole - cost(cut(asked.model, {group.name: fewest}))

        points = {group.units: 0.0, **{n: saving(n) for n in measured}}
        yield np.interp(own, sorted(points), [points[n] for n in sorted(points)])
