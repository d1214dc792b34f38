"""Perplexity along the steps, with what was left of the parameters below it."""

from __future__ import annotations

from typing import Any

from prune.report import summary
from prune.report.blocks import Data, Facts, Plot
from prune.report.course import course
from prune.report.drawing import AFTER, BEFORE, INK, MUTED, SMALL, figure, plot, short, tidy


def drawn(facts: Facts) -> Plot | None:
    """None where nothing was measured before and after."""
    points = course(facts.steps)
    known = [(place, point.perplexity) for place, point in enumerate(points) if point.perplexity is not None]
    if len(known) < 2:
        return None
    shares = [point.share for point in points]
    sized = any(share != 100 for share in shares)  # where nothing was removed there is nothing to see below
    said = f"On {stated(facts.records('perplexity')[-1][1])}. Lower is better"
    said += "; below it, what is left of the parameters." if sized else "."
    with figure(5.0, 3.4 if sized else 2.5) as figured:
        panels = figured.subplots(1 + sized, 1, sharex=True, height_ratios=[3, 1.1][: 1 + sized], squeeze=False)[:, 0]
        _draw_perplexity(panels[0], known)
        lower = panels[-1]
        if sized:
            _draw_parameters(lower, shares)
        names = [short(point.name) for point in points]
        crowded = len(names) > 4
        lower.set_xticks(range(len(names)), names, rotation=30 if crowded else 0, ha="right" if crowded else "center")
        lower.set_xlim(-0.5, len(names) - 0.5)
        rows = [(point.number, point.word or "original", point.perplexity, point.share) for point in points]
        return plot(
            "perplexity",
            "Perplexity along the steps",
            said,
            figured,
            Data(("step", "word", "perplexity", "parameters_percent"), rows),
        )


def stated(perplexity: dict) -> str:
    """Data, length, stride and count of tokens, in words."""
    parts = [summary.flat(perplexity.get("data", "text"))]
    if "documents" in perplexity:
        parts.append(f"documents {perplexity['documents']}")
    if "length" in perplexity:
        parts.append(f"windows of {perplexity['length']} tokens")
    if "stride" in perplexity:
        parts.append(f"stride {perplexity['stride']}")
    if "tokens" in perplexity:
        parts.append(f"{perplexity['tokens']:,} tokens counted once each")
    return ", ".join(parts)


def _draw_perplexity(axes: Any, known: list[tuple[int, float]]) -> None:
    axes.plot(*zip(*known, strict=True), color=AFTER, linewidth=1.8, marker="o", markersize=6)
    axes.plot(*known[0], color=BEFORE, marker="o", markersize=6)
    axes.axhline(known[0][1], color=BEFORE, linewidth=1, linestyle=(0, (3, 3)))
    values = [value for _, value in known]
    for at, (number, value) in enumerate(known):
        lowest = all(other > value for other in values[max(at - 1, 0) : at + 2] if other != value)
        offset = (0, -15) if lowest and len(set(values)) > 1 else (0, 7)  # on the side where the line is not
        axes.annotate(f"{value:.4g}", (number, value), offset, textcoords="offset points", ha="center", color=INK)
    if max(values) > 20 * min(values):
        axes.set_yscale("log")
    axes.margins(y=0.22)
    axes.set_ylabel("perplexity")
    tidy(axes)


def _draw_parameters(axes: Any, heights: list[float]) -> None:
    axes.bar(range(len(heights)), heights, color=[BEFORE, *[AFTER] * (len(heights) - 1)], width=0.5, alpha=0.75)
    how = {"textcoords": "offset points", "ha": "center", "color": MUTED, "fontsize": SMALL}
    for place, share in enumerate(heights):
        axes.annotate(f"{share:.0f} %", (place, share), (0, 3), **how)
    axes.set_ylim(0, max(140, 1.4 * max(heights)))
    axes.set_yticks([])
    axes.set_ylabel("size")
    tidy(axes, grid="x")
    axes.grid(visible=False)
