"""Speed and memory of both models, measured in one alternated run: ratios with their spread."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prune.report import summary
from prune.report.blocks import Block, Data, Facts, Plot, Points, Prose, Rows, Section
from prune.report.drawing import AFTER, BEFORE, INK, figure, plot, tidy
from prune.report.table import Table

UNITS = {"prefill": "s", "decode": "tokens/s", "memory": "bytes", "latency": "s"}


@dataclass(frozen=True)
class Measure:
    """One quantity of both models; `spread` are the quartiles of the ratio after / before over the rounds."""

    name: str
    before: float | None
    after: float | None
    ratio: float | None
    spread: tuple[float, float] | None
    how: str = ""

    @property
    def unit(self) -> str:
        return next((unit for name, unit in UNITS.items() if self.name.startswith(name)), "")


def section(facts: Facts) -> Section | None:
    found = list(measures(facts))
    if not found:
        return None
    rows = [(_named(m), _text(m, m.before), _text(m, m.after), _ratio(m.ratio), _spread(m.spread)) for m in found]
    table = Table(("", "before", "after", "ratio", "its quartiles"), rows, frozenset({1, 2, 3, 4}))
    blocks: list[Block] = [
        Prose("Both models in turn, so that what else the machine did fell on both; these differ from run to run."),
        Rows(table),
    ]
    if said := _terms(found):
        blocks.append(Points(said))
    drawn = [m for m in found if m.ratio]
    return Section("speed", "Speed", [*blocks, *([_plot(drawn)] if drawn else [])], beside=True)


def _terms(found: list[Measure]) -> list[str]:
    """What was measured with, once for all that it holds for."""
    alike: dict[str, list[str]] = {}
    for measure in found:
        if measure.how:
            alike.setdefault(measure.how, []).append(measure.name)
    return [f"{'; '.join(names)}: {how}" for how, names in alike.items()]


def measures(facts: Facts) -> Iterator[Measure]:
    """What the last step that timed each quantity found."""
    timed = facts.timed("speed")
    if timed:
        for name, entry in timed[-1][1].items():
            if name.startswith(tuple(UNITS)) and isinstance(entry, Mapping):
                yield _measure(name, entry)
    old = facts.timed("latency_seconds")
    if old and not (timed and "prefill" in timed[-1][1]):
        timing = facts.timings[old[-1][0] - 1]
        before, after = timing["latency_seconds"]
        of = timing.get("latency_of") or {}
        how = f"batch {of['batch']}, {of['length']} tokens, {of['device']}, {of['rounds']} rounds" if of else ""
        yield Measure("latency", before, after, timing.get("latency_ratio"), None, how)


def _measure(name: str, entry: Mapping[str, Any]) -> Measure:
    spread = entry.get("spread")
    pair = (float(spread[0]), float(spread[1])) if isinstance(spread, (list, tuple)) and len(spread) == 2 else None
    of = dict(entry.get("of") or {})
    runtime = str(of.pop("runtime", ""))
    how = ", ".join([*([runtime] if runtime else []), *(f"{key} {value}" for key, value in of.items())])
    return Measure(name, entry.get("before"), entry.get("after"), entry.get("ratio"), pair, how)


def _named(measure: Measure) -> str:
    return f"{measure.name}, tokens" if measure.unit == "tokens/s" else measure.name


def _text(measure: Measure, value: float | None) -> str:
    if value is None:
        return ""
    if measure.unit == "bytes":
        return summary.size(value)
    return f"{value:,.1f} /s" if measure.unit == "tokens/s" else f"{value * 1000:.1f} ms"


def _ratio(ratio: float | None) -> str:
    return f"{ratio:.2f}" if ratio else ""


def _spread(spread: tuple[float, float] | None) -> str:
    return f"{spread[0]:.2f} to {spread[1]:.2f}" if spread else ""


def _plot(found: list[Measure]) -> Plot:
    """Ratios about 1, with quartiles."""
    with figure(5.0, 0.8 + 0.34 * len(found)) as drawn:
        axes: Any = drawn.subplots()
        for row, m in enumerate(found):
            assert m.ratio
            axes.barh(row, m.ratio, color=AFTER, height=0.5, alpha=0.85)
            if m.spread:
                axes.plot(m.spread, [row, row], color=INK, linewidth=1.2)
            axes.annotate(
                f"× {m.ratio:.2f}",
                (max(m.ratio, *(m.spread or (0,))), row),
                (6, -3),
                textcoords="offset points",
                color=INK,
            )
        axes.axvline(1, color=BEFORE, linewidth=1.4, linestyle=(0, (3, 3)))
        axes.set_yticks(range(len(found)), [m.name for m in found], color=INK)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.2 * max(1, *(max(m.ratio or 0, *(m.spread or (0,))) for m in found)))
        axes.set_xlabel("after / before")
        tidy(axes, grid="x")
        rows = [(m.name, m.before, m.after, m.ratio, *(m.spread or (None, None)), m.unit) for m in found]
        data = Data(("measure", "before", "after", "ratio", "quartile_low", "quartile_high", "unit"), rows)
        return plot(
            "speed",
            "Speed after / before",
            "The dashed line is the original. Of decode more is better, of all else less.",
            drawn,
            data,
        )
