"""Before and after: the numbers that a person looks for first."""

from __future__ import annotations

from dataclasses import dataclass

from prune.report import along, summary
from prune.report.blocks import Block, Facts, Points, Prose, Rows, Section
from prune.report.sections import speed
from prune.report.table import Table


@dataclass(frozen=True)
class Tile:
    """One headline: what changed, by how much, and from what to what."""

    name: str
    change: str
    detail: str
    tone: str  # "gain", "cost" or "plain"


NAMES = {"bytes": "size on disk", "flops": "FLOPs a token"}


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
    return [*found, *_speeds(facts), *_kmmlu(facts)]


def _speeds(facts: Facts) -> list[Tile]:
    """Tokens a second after the prompt, where they were timed."""
    found = {m.name: m for m in speed.measures(facts)}
    decode = found.get("decode")
    if not decode or not decode.ratio or not decode.before or not decode.after:
        return []
    said = f"{(decode.ratio - 1) * 100:+.1f} %".replace("-", "\N{MINUS SIGN}")
    detail = f"{decode.before:,.0f} \N{RIGHTWARDS ARROW} {decode.after:,.0f} tokens/s"
    return [Tile("decoding", said, detail, "gain" if decode.ratio > 1 else "cost")]


def _kmmlu(facts: Facts) -> list[Tile]:
    """The score in points, beside what always giving the most frequent answer would score."""
    tasks = [entry for _, entry in facts.records("tasks")]
    before, after = ((tasks[-1].get(side) or {}).get("kmmlu") or {} if tasks else {} for side in ("before", "after"))
    if "micro" not in before or "micro" not in after:
        return []
    one, other = 100 * before["micro"], 100 * after["micro"]
    said = f"{other - one:+.1f}".replace("-", "\N{MINUS SIGN}")
    detail = f"{one:.1f} % \N{RIGHTWARDS ARROW} {other:.1f} %"
    detail += f" (majority {100 * after['majority']:.1f} %)" if "majority" in after else ""
    return [Tile("KMMLU, points", said, detail, "gain" if other > one else "cost" if other < one else "plain")]


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
