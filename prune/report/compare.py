"""Several runs beside each other: what each kept, what it lost, and which of them no other one beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prune.report import summary
from prune.report.along import stated
from prune.report.blocks import Block, Data, Facts, Plot, Points, Prose, Rows, Section
from prune.report.course import terms
from prune.report.drawing import AFTER, BEFORE, CUT, INK, figure, plot, tidy
from prune.report.page import canonical, render
from prune.report.table import Table


@dataclass(frozen=True)
class Entry:
    """One run's figures; None where it did not measure. `latency` and `before` are of the result and the original.

    `terms` and `timed` are what two perplexities and two latencies must share to be compared.
    """

    name: str
    facts: Facts
    parameters: float | None = None
    bytes: float | None = None
    perplexity: float | None = None
    latency: float | None = None
    latency_ratio: float | None = None
    terms: tuple[str, ...] = ()
    timed: tuple[str, ...] = ()
    before: Mapping[str, float] | None = None


def entry(name: str, manifest: Mapping[str, Any], timings: Sequence[Mapping[str, Any]]) -> Entry:
    """What one output's prune.json and timings.json say of it."""
    facts = Facts(canonical(manifest), canonical(timings))
    found = {change.name: change for change in summary.changes(facts.steps, facts.timings)}
    after = {name: change.after for name, change in found.items()}
    measured = facts.records("perplexity")
    latency = found.get("latency")
    ratio = latency.ratio or (latency.after / latency.before) if latency and latency.after and latency.before else None
    return Entry(
        name,
        facts,
        parameters=after.get("parameters"),
        bytes=after.get("bytes"),
        perplexity=after.get("perplexity"),
        latency=after.get("latency"),
        latency_ratio=ratio,
        terms=terms(measured[-1][1]) if measured else (),
        timed=_timed(facts) if after.get("latency") else (),
        before={name: change.before for name, change in found.items()},
    )


def comparison(entries: Sequence[Entry]) -> str:
    """One page, everything in it: a table of the runs, and perplexity against parameters and latency."""
    alike = _most([e for e in entries if e.perplexity is not None], "terms")
    timed = _most([e for e in entries if e.latency is not None], "timed")
    blocks: list[Block] = [Rows(_table(entries))]
    if alike:
        blocks.append(Prose(f"Perplexity per token on {_measured(alike[0])}."))
    if timed:
        blocks.append(Prose(f"Latency of a prompt: {', '.join(timed[0].timed) or 'its terms are not known'}."))
    if said := [*_otherwise(entries, alike, "perplexity"), *_otherwise(entries, timed, "latency")]:
        blocks.append(Points(said, "warn"))
    ratios = [e.latency_ratio if e in timed else None for e in alike]
    plots = [
        _pareto("parameters", "parameters, share of the original's", alike, [_share(e) for e in alike], entries),
        _pareto("latency", "latency, share of the original's in the same run", alike, ratios, entries),
    ]
    sections = [Section("runs", "Runs", blocks)]
    if any(plots):
        sections.append(Section("pareto", "What is paid for what", [one for one in plots if one]))
    sections.append(Section("cuts", "What each removed", [Rows(_removed(entries))]))
    return render("comparison.html", names=[e.name for e in entries], sections=sections, alone=True)


def _most(entries: Sequence[Entry], terms: str) -> list[Entry]:
    """The runs that may stand beside each other: the largest set that was measured alike."""
    known = [getattr(e, terms) for e in entries]
    sets = [[e for e, other in zip(entries, known, strict=True) if other == own] for own in dict.fromkeys(known)]
    return max(sets, key=len, default=[])


def _otherwise(entries: Sequence[Entry], alike: Sequence[Entry], what: str) -> list[str]:
    """A line for each run that was measured on other terms than the rest, with its own."""
    others = [e for e in entries if getattr(e, what) is not None and e not in alike]
    own = {"perplexity": _measured, "latency": lambda e: ", ".join(e.timed) or "its terms are not known"}[what]
    return [f"measured {what} otherwise, and not drawn with the rest: {e.name} ({own(e)})" for e in others]


def _measured(e: Entry) -> str:
    return stated(e.facts.records("perplexity")[-1][1])


def _timed(facts: Facts) -> tuple[str, ...]:
    """What the latency was measured with, but for how often."""
    of = facts.timed("latency_of")
    return tuple(f"{name} {value}" for name, value in sorted(of[-1][1].items()) if name != "rounds") if of else ()


def _share(e: Entry) -> float | None:
    whole = (e.before or {}).get("parameters")
    return e.parameters / whole if e.parameters and whole else None


def _table(entries: Sequence[Entry]) -> Table:
    head = (
        "",
        "run",
        "parameters",
        "of the original",
        "size",
        "perplexity",
        "original's",
        "latency",
        "of the original",
    )
    rows = []
    for number, e in enumerate(entries, 1):
        share, before = _share(e), (e.before or {}).get("perplexity")
        rows.append(
            (
                str(number),
                e.name,
                f"{e.parameters:,.0f}" if e.parameters else "",
                f"{share:.1%}" if share else "",
                summary.size(e.bytes) if e.bytes else "",
                f"{e.perplexity:.2f}" if e.perplexity else "",
                f"{before:.2f}" if before else "",
                f"{1000 * e.latency:.1f} ms" if e.latency else "",
                f"{e.latency_ratio:.1%}" if e.latency_ratio else "",
            )
        )
    return Table(head, rows, frozenset(range(2, len(head))))


def _removed(entries: Sequence[Entry]) -> Table:
    rows = [(str(n), e.name, *pair) for n, e in enumerate(entries, 1) for pair in summary.removed(e.facts.steps)]
    return Table(("", "run", "what", "removed"), rows)


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The positions of the points that no other point beats in one coordinate without losing in the other."""
    return [
        number
        for number, (x, y) in enumerate(points)
        if not any(a <= x and b <= y and (a < x or b < y) for a, b in points)
    ]


def _pareto(
    name: str, label: str, entries: Sequence[Entry], places: Sequence[float | None], among: Sequence[Entry]
) -> Plot | None:
    """Each run a point with its number `among` all, the originals grey, the front a line; down and left is better."""
    known = [(n, e, x) for n, (e, x) in enumerate(zip(entries, places, strict=True), 1) if x and e.perplexity]
    if not known:
        return None
    points = [(x, float(e.perplexity or 0)) for _, e, x in known]
    whole = sorted({round(e.before["perplexity"], 6) for _, e, _ in known if e.before and "perplexity" in e.before})
    best = sorted(points[n] for n in front(points))
    with figure(5.0, 3.6) as drawn:
        axes: Any = drawn.subplots()
        axes.plot(*zip(*best, strict=True), color=CUT, linewidth=1.2, linestyle=(0, (3, 3)), label="not beaten")
        axes.scatter(*zip(*points, strict=True), color=AFTER, s=70, zorder=3, linewidth=0, label="runs")
        axes.scatter([1] * len(whole), whole, color=BEFORE, s=70, zorder=3, linewidth=0, label="original")
        for number, (_, e, _) in enumerate(known):
            offset = {"xytext": (7, 5), "textcoords": "offset points"}
            axes.annotate(_number(e, among), points[number], color=INK, **offset)
        values = [y for _, y in points] + whole
        if max(values) > 20 * min(values):
            axes.set_yscale("log")
        axes.margins(0.12)
        axes.set_xlabel(label)
        axes.set_ylabel("perplexity")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, columnspacing=1.2)
        tidy(axes, grid="both")
        rows = [(e.name, x, e.perplexity) for _, e, x in known]
        data = Data(("run", name, "perplexity"), rows)
        caption = "Down and to the left is better; numbers are those of the table."
        return plot(f"pareto-{name}", f"Perplexity against {name}", caption, drawn, data)


def _number(e: Entry, entries: Sequence[Entry]) -> str:
    return str(1 + next(n for n, other in enumerate(entries) if other is e))
