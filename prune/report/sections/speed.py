"""Speed and memory of both models, measured in one alternated run: ratios with their spread."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prune.report import summary
from prune.report.blocks import Block, Data, Facts, Plot, Points, Prose, Rows, Section
from prune.report.drawing import AFTER, BEFORE, INK, PAPER, figure, plot, tidy
from prune.report.table import Table

PYTORCH = "PyTorch"
UNITS = {"prefill": "s", "decode": "tokens/s", "memory": "bytes", "latency": "s"}
SHORT = 6  # measures that fit beside their plot
TOLD = ("batch", "length")  # what a measure's label says where there are several of them


@dataclass(frozen=True)
class Measure:
    """One quantity of both models; `spread` are the quartiles of the ratio after / before over the rounds.

    `of` says what it was measured with: runtime, batch, length, device and so on; `step` which step did, and `changed`
    which later one made another model of the result, both counted from 1.
    """

    name: str
    before: float | None
    after: float | None
    ratio: float | None
    spread: tuple[float, float] | None
    of: Mapping[str, Any]
    step: int = 1
    changed: int | None = None

    @property
    def kind(self) -> str:
        return next((name for name in UNITS if self.name.startswith(name)), self.name)

    @property
    def unit(self) -> str:
        return UNITS.get(self.kind, "")


def section(facts: Facts) -> Section | None:
    found = sorted(measures(facts), key=_order)
    if not found:
        return None
    labels = _labels(found)
    rows = [
        (label, _text(m, m.before), _text(m, m.after), _ratio(m.ratio), _spread(m.spread))
        for m, label in zip(found, labels, strict=True)
    ]
    table = Table(("", "before", "after", "ratio", "its quartiles"), rows, frozenset({1, 2, 3, 4}))
    blocks: list[Block] = [
        Prose(
            "Both models in turn, so that what else the machine did fell on both; these differ from run to run. "
            "Decoding is in tokens a second."
        ),
        Rows(table),
    ]
    if said := _terms(found):
        blocks.append(Points(said))
    step, changed = found[0].step, found[0].changed
    if changed:
        late = f"timed before step {changed} changed the model: these are no times of the result"
        blocks.append(Points([late], "warn"))
    drawn = [(m, label) for m, label in zip(found, labels, strict=True) if m.ratio]
    return Section(
        "speed", f"Speed (step {step})", [*blocks, *([_plot(drawn)] if drawn else [])], beside=len(found) <= SHORT
    )


def _order(measure: Measure) -> tuple[Any, ...]:
    """PyTorch before others; prefill, decode, memory; small batches and short prompts first."""
    sizes = [measure.of.get(name) or 0 for name in TOLD]
    return measure.of.get("runtime", PYTORCH) != PYTORCH, list(UNITS).index(measure.kind), *sizes


def _labels(found: Sequence[Measure]) -> list[str]:
    """What tells each from the others: the quantity, then batch and length where these differ, and the runtime."""
    several = [name for name in TOLD if len({m.of.get(name) for m in found}) > 1]
    return [
        ", ".join(
            [
                m.kind,
                *(f"{name} {m.of[name]}" for name in several if name in m.of),
                *([str(m.of["runtime"])] if m.of.get("runtime", PYTORCH) != PYTORCH else []),
            ]
        )
        for m in found
    ]


def _terms(found: Sequence[Measure]) -> list[str]:
    """What was measured with: what holds for all in one line, the rest for each quantity."""
    told = [(m.kind, [f"{key} {value}" for key, value in m.of.items() if key != "runtime"]) for m in found if m.of]
    if not told:
        return []
    common = [fact for fact in told[0][1] if all(fact in own for _, own in told)]
    rest: dict[str, list[str]] = {}
    for kind, own in told:
        rest.setdefault(kind, []).extend(fact for fact in own if fact not in common and not fact.startswith(TOLD))
    lines = [f"{kind}: {', '.join(dict.fromkeys(own))}" for kind, own in rest.items() if own]
    return [*([", ".join(common)] if common else []), *lines]


def measures(facts: Facts) -> Iterator[Measure]:
    """What the last step that timed each quantity found."""
    timed = facts.timed("speed")
    if timed:
        for name, entry in timed[-1][1].items():
            if name.startswith(tuple(UNITS)) and isinstance(entry, Mapping):
                yield _measure(name, entry, *_when(timed[-1][0], facts))
    old = facts.timed("latency_seconds")
    if old and not (timed and "prefill" in timed[-1][1]):
        timing = facts.timings[old[-1][0] - 1]
        before, after = timing["latency_seconds"]
        ratio, of = timing.get("latency_ratio"), timing.get("latency_of") or {}
        yield Measure("latency", before, after, ratio, None, of, *_when(old[-1][0], facts))


def _when(step: int, facts: Facts) -> tuple[int, int | None]:
    """The step that timed, and the first one after it that changed the model."""
    later = summary.changed_after(step - 1, facts.steps)
    return step, None if later is None else later + 1


def _measure(name: str, entry: Mapping[str, Any], step: int, changed: int | None) -> Measure:
    spread = entry.get("spread")
    pair = (float(spread[0]), float(spread[1])) if isinstance(spread, (list, tuple)) and len(spread) == 2 else None
    numbers = entry.get("before"), entry.get("after"), entry.get("ratio")
    return Measure(name, *numbers, pair, entry.get("of") or {}, step, changed)


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


def _plot(found: Sequence[tuple[Measure, str]]) -> Plot:
    """Ratios about 1, with quartiles."""
    most = max(1, *(max(m.ratio or 0, *(m.spread or (0,))) for m, _ in found))
    with figure(5.0, 0.8 + 0.34 * len(found)) as drawn:
        axes: Any = drawn.subplots()
        axes.axvline(1, color=BEFORE, linewidth=1.4, linestyle=(0, (3, 3)), zorder=0)
        for row, (m, _) in enumerate(found):
            assert m.ratio
            axes.barh(row, m.ratio, color=AFTER, height=0.5, alpha=0.85)
            if m.spread:
                axes.plot(m.spread, [row, row], color=INK, linewidth=1.2)
            style = {"color": INK, "bbox": {"facecolor": PAPER, "edgecolor": "none", "pad": 1}}
            place = max(m.ratio, *(m.spread or (0,))), row
            axes.annotate(f"× {m.ratio:.2f}", place, (6, -3), textcoords="offset points", **style)
        axes.set_yticks(range(len(found)), [label for _, label in found], color=INK)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.2 * most)
        axes.set_xlabel("after / before")
        tidy(axes, grid="x")
        rows = [(label, m.before, m.after, m.ratio, *(m.spread or (None, None)), m.unit) for m, label in found]
        data = Data(("measure", "before", "after", "ratio", "quartile_low", "quartile_high", "unit"), rows)
        said = "The dashed line is the original. Of decode more is better, of all else less."
        return plot("speed", "Speed after / before", said, drawn, data)
