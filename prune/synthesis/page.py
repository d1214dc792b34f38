"""The report page: one file that loads nothing, from the record and a few examples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prune.synthesis.items import RULES, Item

WIDTH, HEIGHT, LEFT, BOTTOM = 420, 180, 40, 24  # of a chart, in pixels
MEANINGS = {
    "cut": "the writer's tokens ran out before the instruction ended",
    "leaked": "the template leaked",
    "meaningless": "punctuation, stop words or repetition",
    "similar": "near-duplicate of one kept",
    "same": "no information gained",
    "pleads": "the writer pleads that it is hard",
    "copied": "the answer copies the instruction",
}


def page(record: Mapping[str, Any], examples: Mapping[str, Sequence[tuple[Item, str]]]) -> str:
    """The page as HTML. Everything that a model or a user wrote is escaped, and nothing on it may run."""
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    rounds = record["rounds"]
    numbers = [each["round"] for each in rounds]
    growth = [
        chart(numbers, {"instruction": [r["words"] for r in rounds], "answer": [r["answer_words"] for r in rounds]}),
        chart(numbers, {"before": [r["difficulty"][0] for r in rounds], "after": [r["difficulty"][1] for r in rounds]}),
    ]
    return environment.get_template("page.html").render(
        record=record,
        rules=[rule for rule in RULES if record["rejected"].get(rule)],
        meanings=MEANINGS,
        operations=operations(rounds),
        growth=dict(zip(("words", "difficulty"), growth, strict=True)),
        examples={name: examples[name] for name in sorted(examples, key=_order)},
        shade=shade,
    )


def _order(name: str) -> tuple[int, int]:
    """Rounds in their order, then rules in theirs."""
    return (1, RULES.index(name)) if name in RULES else (0, int(name.removeprefix("round ")))


def operations(rounds: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, int]]:
    """Each operation with how often it was tried, and kept."""
    names = list(dict.fromkeys(name for each in rounds for name in each["operations"]))
    counts = [[each["operations"].get(name, [0, 0]) for each in rounds] for name in names]
    return [
        (name, sum(tried for tried, _ in found), sum(kept for _, kept in found))
        for name, found in zip(names, counts, strict=True)
    ]


def chart(numbers: Sequence[int], series: Mapping[str, Sequence[float | None]]) -> dict[str, Any] | None:
    """A line chart as points of an SVG; None where nothing was measured."""
    known = [value for values in series.values() for value in values if value is not None]
    if not known:
        return None
    top = _round_number(max(known))
    span = max(len(numbers) - 1, 1)

    def point(place: int, value: float) -> tuple[float, float, float]:
        x = LEFT + place / span * (WIDTH - LEFT - 20)
        return round(x, 1), round((HEIGHT - BOTTOM) * (1 - value / top) + 8, 1), value

    lines = {
        name: [point(place, value) for place, value in enumerate(values) if value is not None]
        for name, values in series.items()
    }
    ticks = [(round((HEIGHT - BOTTOM) * (1 - share) + 8, 1), f"{top * share:.3g}") for share in (0, 0.5, 1)]
    rounds = [(point(place, 0)[0], number) for place, number in enumerate(numbers)]
    return {"lines": lines, "ticks": ticks, "rounds": rounds, "width": WIDTH, "height": HEIGHT + 20, "left": LEFT}


def _round_number(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, ... that is not below a value."""
    scale = 10.0 ** math.floor(math.log10(max(value, 1.0)))
    return next(step * scale for step in (1, 2, 5, 10) if step * scale >= value)


def shade(count: int, most: int) -> int:
    """One of nine shades for a count: 0 for nothing, 8 for the most."""
    return 0 if not count else 1 + round(7 * count / max(most, 1))
