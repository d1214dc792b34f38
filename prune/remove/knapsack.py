"""One option for each group, which together save enough and lose least: dynamic programming, or an integer program."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp  # type: ignore[import-untyped,unused-ignore]

BINS = 4096  # of the cost axis in dynamic programming


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
    """The same for several budgets at once: `saved` and `needed` by budget."""
    ends = np.cumsum([len(own) for own in lost])
    once = np.zeros((len(lost), ends[-1]))
    for row, end in enumerate(ends):
        once[row, end - len(lost[row]) : end] = 1
    scale = [max(need, 1e-12) for need in needed]
    gains = np.array([np.concatenate(list(own)) / s for own, s in zip(saved, scale, strict=True)])
    enough = [need / s for need, s in zip(needed, scale, strict=True)]
    cost = np.concatenate(list(lost))
    with _quiet():
        found = milp(
            cost / max(cost.max(), 1e-30),
            integrality=np.ones(ends[-1]),
            bounds=Bounds(0, 1),
            constraints=[LinearConstraint(once, 1, 1), LinearConstraint(gains, enough, np.inf)],
        )
    if found.x is None:
        return None
    return [int(found.x[end - len(own) : end].argmax()) for own, end in zip(lost, ends, strict=True)]


@contextmanager
def _quiet() -> Iterator[None]:
    """While inside, what the solver's own code prints on stdout, past Python, goes nowhere: results stand there."""
    sys.stdout.flush()
    saved, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(nowhere)
