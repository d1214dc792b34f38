"""What a synthesis of instructions kept, what it refused and why."""

from __future__ import annotations

from typing import Any

from prune.report.blocks import Block, Data, Facts, Plot, Points, Prose, Rows, Section
from prune.report.drawing import AFTER, CUT, INK, MUTED, SMALL, figure, plot, short, tidy
from prune.report.table import Table

COLUMNS = {  # of the table of rounds, as the record calls them
    "round": "round",
    "attempted": "tried",
    "kept": "kept",
    "words": "words",
    "answer_words": "of the answer",
    "difficulty": "difficulty",
}
FAILINGS = {"unreadable_verdicts": "verdicts could not be read", "truncated_answers": "answers were cut off"}


def section(facts: Facts) -> Section | None:
    blocks: list[Block] = []
    for number, found in facts.records("synthesis"):
        rejected = found.get("rejected") or {}
        total = sum(value for value in rejected.values() if isinstance(value, int))
        blocks.append(Prose(f"Step {number} kept {found.get('kept', 0):,} instructions and refused {total:,}."))
        if rejected:
            blocks.append(_plot(number, int(found.get("kept", 0)), rejected))
        blocks += _rounds(found.get("rounds"))
        blocks += _coverage(found.get("coverage"))
    return Section("synthesis", "Synthesis", blocks, beside=True) if blocks else None


def _plot(number: int, kept: int, rejected: dict[str, int]) -> Plot:
    counts = [("kept", kept), *sorted(rejected.items(), key=lambda pair: -pair[1])]
    with figure(5.0, 0.7 + 0.26 * len(counts)) as drawn:
        axes: Any = drawn.subplots()
        bars = axes.barh(range(len(counts)), [n for _, n in counts], color=[AFTER, *[CUT] * len(rejected)], height=0.66)
        axes.bar_label(bars, padding=4, color=MUTED, fontsize=SMALL)
        axes.set_yticks(range(len(counts)), [short(name.replace("_", " ")) for name, _ in counts], color=INK)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        tidy(axes, grid="x")
        data = Data(("outcome", "instructions"), counts)
        return plot(f"synthesis-{number}", "Kept and refused, by rule", "How many instructions.", drawn, data)


def _rounds(rounds: Any) -> list[Block]:
    """A row for each round, and what the writer did not manage."""
    entries = [one for one in rounds or [] if isinstance(one, dict)]
    columns = {name: head for name, head in COLUMNS.items() if any(_cell(one.get(name)) for one in entries)}
    if not columns:
        return []
    rows = [tuple(_cell(one.get(name)) for name in columns) for one in entries]
    blocks: list[Block] = [Rows(Table(tuple(columns.values()), rows, frozenset(range(1, len(columns)))))]
    counts = {what: sum(int(one.get(name) or 0) for one in entries) for name, what in FAILINGS.items()}
    if lines := [f"{count:,} {what}" for what, count in counts.items() if count]:
        blocks.append(Points(lines, "warn"))
    return blocks


def _cell(value: Any) -> str:
    """A number, or the pair of one before and after an evolution."""
    if isinstance(value, list):
        known = [_cell(one) for one in value if one is not None]
        return " \N{RIGHTWARDS ARROW} ".join(known) if len(known) == len(value) else ""
    return f"{value:.1f}" if isinstance(value, float) else "" if value is None else f"{value:,}"


def _coverage(coverage: Any) -> list[Block]:
    if not isinstance(coverage, dict) or not coverage:
        return []
    skills, difficulties = coverage.get("skills"), coverage.get("difficulties")
    if isinstance(skills, list) and isinstance(difficulties, list) and skills:
        seeds, kept = coverage["seeds"], coverage["kept"]
        cells = [
            (str(skill), *(f"{a} \N{RIGHTWARDS ARROW} {b}" for a, b in zip(before, after, strict=True)))
            for skill, before, after in zip(skills, seeds, kept, strict=True)
        ]
        head = ("of the seeds \N{RIGHTWARDS ARROW} now", *map(str, difficulties))
        grid = [Rows(Table(head, cells, frozenset(range(1, len(head)))))]
        rest = {key: coverage[key] for key in ("kinds", "formats", "topics", "languages") if coverage.get(key)}
        return [*grid, *_coverage(rest)]
    rows = []
    for name, value in coverage.items():
        said = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        rows.append((name.replace("_", " "), said))
    return [Rows(Table(("coverage", ""), rows))]
