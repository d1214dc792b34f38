"""Before and after: the numbers that a person looks for first."""

from __future__ import annotations

from dataclasses import dataclass

from prune.report import along, summary
from prune.report.blocks import Block, Facts, Points, Prose, Rows, Section
from prune.report.table import Table


@dataclass(frozen=True)
class Tile:
    """One headline: what changed, by how much, and from what to what."""

    name: str
    change: str
    detail: str
    tone: str  # "gain", "cost" or "plain"


NAMES = {"bytes": "size on disk", "latency": "latency", "parameters": "parameters", "perplexity": "perplexity"}


def tiles(facts: Facts) -> list[Tile]:
    """The changes as headlines; nothing for what is not known."""
    found = []
    for change in summary.changes(facts.steps, facts.timings):
        ((name, before, after, percent),) = summary.rows([change])
        if change.after is None or not percent:
            continue
        larger = change.after > change.before
        better = larger == (change.name in summary.RISING)
        tone = "plain" if change.after == change.before else "gain" if better else "cost"
        said = percent.replace("-", "\N{MINUS SIGN}")
        found.append(Tile(NAMES.get(name, name), said, f"{before} \N{RIGHTWARDS ARROW} {after}", tone))
    return found


def section(facts: Facts) -> Section | None:
    rows = summary.rows(summary.changes(facts.steps, facts.timings))
    if not rows:
        return None
    named = [(NAMES.get(name, name), *rest) for name, *rest in rows]
    blocks: list[Block] = [Rows(Table(("", "before", "after", "change"), named, frozenset({1, 2, 3})))]
    if said := terms(facts):
        blocks.append(Prose(said))
    if late := summary.overtaken(facts.steps):
        blocks.append(Points(late, "warn"))
    if drawn := along.drawn(facts):
        blocks.append(drawn)
    return Section("result", "Before and after", blocks, beside=True)


def terms(facts: Facts) -> str:
    """What the perplexity was measured on: it means nothing without."""
    found = facts.records("perplexity")
    if not found:
        return ""
    return "Perplexity per token on " + along.stated(found[-1][1]) + "."
