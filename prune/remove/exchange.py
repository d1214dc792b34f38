"""Exchange: from one plan to a better one of the same size, by giving to one group what another can spare.

Every group is made a step smaller and a step larger alone, and judged; then the groups that gain most for what they
cost grow at the expense of those that lose least, as many at once as lower the judge. A move that does not is not
made, so that the result is never worse than the start, by the judge. Nothing is random.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from prune.model.groups import Group
from prune.remove.budget import Problem, Sizes
from prune.remove.cut import cut

SWEEPS = 3
STEP = 10  # a step is this part of a fine group's units; a coarse one's step is the next count


def exchange(asked: Problem, start: Sizes, judge: Callable[[Sizes], float], *, sweeps: int = SWEEPS) -> Sizes:
    """The best sizes found, all within the budget; `judge` gives what they lose."""
    best, lost = dict(start), judge(start)
    for sweep in range(sweeps):
        steps = {group.name: _steps(asked, group, best[group.name], STEP * 2**sweep) for group in asked.groups}
        found = _measured(asked, best, lost, steps, judge)
        moved = False
        for count in _halving(len(found)):
            trial = _moved(asked, best, steps, found, count)
            value = judge(trial) if trial is not None and trial != best else lost
            if trial is not None and value < lost:
                best, lost, moved = trial, value, True
                break
        if not moved and sweep:
            break
    return best


def _steps(asked: Problem, group: Group, kept: int, parts: int) -> tuple[int | None, int | None]:
    """The next smaller and the next larger count worth a trial."""
    allowed = asked.counts(group)
    size = max(group.units // parts, 1)
    smaller = [n for n in allowed if n <= kept - size] or [n for n in allowed if n < kept][:1]
    larger = [n for n in allowed if n >= kept + size] or [n for n in allowed if n > kept][-1:]
    return (smaller[-1] if smaller else None), (larger[0] if larger else None)


Rates = list[tuple[float, str, int]]  # what a unit of cost gains or loses, the group, and the count it goes to


def _measured(
    asked: Problem,
    sizes: Sizes,
    lost: float,
    steps: dict[str, tuple[int | None, int | None]],
    judge: Callable[[Sizes], float],
) -> list[tuple[float, str, str]]:
    """Pairs (gain, who grows, who shrinks), best first: what a unit of cost gains in one and loses in the other."""
    name = next(iter(asked.limits))
    cost = asked.costs[name]
    now = cost(cut(asked.model, asked.plan(sizes)))
    rates: dict[str, list[tuple[float, str]]] = {"smaller": [], "larger": []}
    for group, (smaller, larger) in steps.items():
        for way, count in (("smaller", smaller), ("larger", larger)):
            if count is not None:
                trial = {**sizes, group: count}
                weight = abs(cost(cut(asked.model, asked.plan(trial))) - now)
                rates[way].append(((judge(trial) - lost) / max(weight, 1e-30), group))
    growing, shrinking = sorted(rates["larger"]), sorted(rates["smaller"])
    pairs = []
    for (up, one), (down, other) in zip(growing, (entry for entry in shrinking), strict=False):
        if one != other and up + down < 0:
            pairs.append((up + down, one, other))
    return pairs


def _halving(count: int) -> list[int]:
    """count, count / 2, ..., 1."""
    found = []
    while count:
        found.append(count)
        count //= 2
    return found


def _moved(
    asked: Problem,
    sizes: Sizes,
    steps: dict[str, tuple[int | None, int | None]],
    pairs: list[tuple[float, str, str]],
    count: int,
) -> Sizes | None:
    """The sizes with the best pairs moved, shrunk further where that is not enough, and filled up."""
    trial = dict(sizes)
    for _, one, other in islice(pairs, count):
        larger, smaller = steps[one][1], steps[other][0]
        assert larger is not None and smaller is not None
        trial[one], trial[other] = max(larger, trial[one]), min(smaller, trial[other])
    givers = [other for _, _, other in pairs[:count]]
    table = {group.name: group for group in asked.groups}
    while not asked.fits(trial):
        shrunk = False
        for name in givers:
            smaller, _ = _steps(asked, table[name], trial[name], 4 * STEP)
            if smaller is not None:
                trial[name], shrunk = smaller, True
        if not shrunk:
            return None
    return asked.filled(trial)
