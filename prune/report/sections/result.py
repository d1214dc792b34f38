"""Before and after: the numbers that a person looks for first."""

from __future__ import annotations

from dataclasses import dataclass

from prune.report import along, summary
from prune.report.blocks import Block, Facts, Points, Prose, Rows, Section
from prune.report.sections import speed
from prune.report.table import Table, amount


@dataclass(frozen=True)
class Tile:
    """One headline: what changed, by how much, and from what to what."""

    name: str
    change: str
    detail: str
    tone: str  # "gain", "cost" or "plain"


COUNTED = ("parameters", "flops")
NAMES = {"bytes": "size on disk", "flops": "FLOPs a token"}


def tiles(facts: Facts) -> list[Tile]:
    """The changes as headlines; nothing for what is not known."""
    found = []
    for change in summary.changes(facts.steps, facts.timings):
        ((name, *sides, percent),) = summary.rows([change])
        if change.after is None or not percent:
            continue
        before, after = map(amount, (change.before, change.after)) if name in COUNTED else sides
        if change.after == change.before:
            found.append(Tile(NAMES.get(name, name), "same", after, "plain"))
            continue
        better = (change.after > change.before) == (change.name in summary.RISING)
        detail = f"{before} \N{RIGHTWARDS ARROW} {after}"
        tone = "plain" if change.unsure else "gain" if better else "cost"
        found.append(Tile(NAMES.get(name, name), _minus(percent), detail, tone))
    return [*found, *_speeds(facts), *_kmmlu(facts)]


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


def _speeds(facts: Facts) -> list[Tile]:
    """Tokens a second after the prompt, where they were timed."""
    found = {m.name: m for m in speed.measures(facts)}
    decode = found.get("decode")
    if not decode or decode.changed or not decode.ratio or not decode.before or not decode.after:
        return []
    detail = f"{decode.before:,.0f} \N{RIGHTWARDS ARROW} {decode.after:,.0f} tokens/s"
    if summary.unsure(decode.spread):
        return [Tile("decoding", summary.NOISE, detail, "plain")]
    return [
        Tile("decoding", _minus(f"{(decode.ratio - 1) * 100:+.1f} %"), detail, "gain" if decode.ratio > 1 else "cost")
    ]


def _kmmlu(facts: Facts) -> list[Tile]:
    """The score in points, beside what always giving the most frequent answer would score.

    A change within the standard error is neither gain nor cost.
    """
    tasks = facts.records("tasks")
    if not tasks or summary.changed_after(tasks[-1][0] - 1, facts.steps) is not None:
        return []
    before, after = ((tasks[-1][1].get(side) or {}).get("kmmlu") or {} for side in ("before", "after"))
    if "micro" not in before or "micro" not in after:
        return []
    one, other = 100 * before["micro"], 100 * after["micro"]
    error = 100 * max(side.get("error") or 0 for side in (before, after))
    said = _minus(f"{other - one:+.1f}") + (f" \N{PLUS-MINUS SIGN} {error:.1f}" if error else "")
    detail = f"{one:.1f} % \N{RIGHTWARDS ARROW} {other:.1f} %"
    detail += f" (majority {100 * after['majority']:.1f} %)" if "majority" in after else ""
    tone = "plain" if abs(other - one) <= error else "gain" if other > one else "cost"
    return [Tile("KMMLU, points", said, detail, tone)]


def section(facts: Facts) -> Section | None:
    rows = summary.rows(summary.changes(facts.steps, facts.timings))
    if not rows:
        return None
    named = [
        (NAMES.get(name, name), before, after, "same" if before == after else _minus(change))
        for name, before, after, change in rows
    ]
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
