"""Perplexity along the steps, as numbers: what each step left, and what was measured there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prune.report.table import Table

CHANGED = {"shape", "training", "merge", "saved_as"}  # what steps record that change the model

TERMS = ("data", "documents", "length", "stride", "tokens")  # what a perplexity was measured on

Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Point:
    """After a step, or of the original (number 0, without a word); `perplexity` None where nothing was measured."""

    number: int
    word: str
    perplexity: float | None
    share: float  # percent of the original's parameters

    @property
    def name(self) -> str:
        return f"{self.number} {self.word}" if self.number else "original"


def course(steps: Records) -> list[Point]:
    """The original and every step that changed the model or measured it, in order.

    Perplexities that were measured otherwise than the last one are left out: they do not stand on one line.
    """
    measured = [(number, step["record"].get("perplexity")) for number, step in enumerate(steps, 1)]
    found = [(number, entry) for number, entry in measured if entry]
    if not found:
        return []
    own = terms(found[-1][1])
    alike = [(number, entry) for number, entry in found if terms(entry) == own]
    known = {0: alike[0][1].get("before")} | {number: entry.get("after") for number, entry in alike}
    shares = _shares(steps)
    points = [Point(0, "", known[0], shares[0])]
    for number, step in enumerate(steps, 1):
        if number in known or CHANGED & set(step["record"]):
            points.append(Point(number, step["word"], known.get(number), shares[number]))
    return points


def terms(found: Mapping[str, Any]) -> tuple[str, ...]:
    """What must be equal for two perplexities to be compared."""
    return tuple(str(found.get(name)) for name in TERMS)


def table(steps: Records) -> Table | None:
    """For the terminal; None where not more was measured than the original and the result."""
    points = course(steps)
    if sum(point.perplexity is not None for point in points) < 3:
        return None
    rows = [
        (point.name, "" if point.perplexity is None else f"{point.perplexity:.2f}", f"{point.share:.1f} %")
        for point in points
    ]
    return Table(("after step", "perplexity", "parameters"), rows, frozenset({1, 2}))


def _shares(steps: Records) -> list[float]:
    """Percent of the original's parameters before the first step and after each."""
    pairs = [step["record"].get("parameters") for step in steps]
    first = next((pair[0] for pair in pairs if pair), None)
    found = [100.0]
    for pair in pairs:
        found.append(100 * pair[1] / first if pair and first else found[-1])
    return found
