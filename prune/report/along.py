"""Perplexity along the steps, with what was left of the parameters below it."""

from __future__ import annotations

from typing import Any

from prune.report import summary
from prune.report.blocks import Data, Facts, Plot
from prune.report.drawing import AFTER, BEFORE, INK, MUTED, SMALL, figure, plot, short, tidy

CHANGED = {"shape", "training", "merge", "saved_as"}  # what steps record that change the model


def drawn(facts: Facts) -> Plot | None:
    """None where nothing was measured before and after."""
    measured = facts.records("perplexity")
    if not measured:
        return None
    own = terms(measured[-1][1])  # what was measured otherwise cannot stand on one line
    alike = [(number, found) for number, found in measured if terms(found) == own]
    points = [(0, alike[0][1].get("before"))] + [(number, found.get("after")) for number, found in alike]
    known = [(number, value) for number, value in points if value is not None]
    if len(known) < 2:
        return None
    shown = [0, *(n for n, step in enumerate(facts.steps, 1) if CHANGED & set(step["record"]) or n in dict(known))]
    places = {number: place for place, number in enumerate(shown)}
    with figure(5.0, 3.4) as figured:
        upper, lower = figured.subplots(2, 1, sharex=True, height_ratios=[3, 1.1])
        _draw_perplexity(upper, [(places[number], value) for number, value in known])
        _draw_parameters(lower, _shares(facts), shown)
        names = [short(f"{n} {facts.steps[n - 1]['word']}") if n else "original" for n in shown]
        crowded = len(names) > 4
        lower.set_xticks(range(len(names)), names, rotation=30 if crowded else 0, ha="right" if crowded else "center")
        lower.set_xlim(-0.5, len(names) - 0.5)
        rows = [(number, names[places[number]].split(" ")[-1], value) for number, value in points]
        return plot(
            "perplexity",
            "Perplexity along the steps",
            f"On {stated(measured[-1][1])}. Lower is better; below it, what is left of the parameters.",
            figured,
            Data(("step", "word", "perplexity"), rows),
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


def terms(found: dict[str, Any]) -> tuple[str, ...]:
    """What must be equal for two perplexities to be compared."""
    return tuple(str(found.get(name)) for name in ("data", "documents", "length", "stride", "tokens"))


def _draw_perplexity(axes: Any, known: list[tuple[int, float]]) -> None:
    axes.plot(*zip(*known, strict=True), color=AFTER, linewidth=1.8, marker="o", markersize=6)
    axes.plot(*known[0], color=BEFORE, marker="o", markersize=6)
    axes.axhline(known[0][1], color=BEFORE, linewidth=1, linestyle=(0, (3, 3)))
    for number, value in known:
        axes.annotate(f"{value:.4g}", (number, value), (0, 7), textcoords="offset points", ha="center", color=INK)
    values = [value for _, value in known]
    if max(values) > 20 * min(values):
        axes.set_yscale("log")
    axes.margins(y=0.22)
    axes.set_ylabel("perplexity")
    tidy(axes)


def _shares(facts: Facts) -> list[float]:
    """Percent of the original's parameters before the first step and after each."""
    pairs = [step["record"].get("parameters") for step in facts.steps]
    first = next((pair[0] for pair in pairs if pair), None)
    found = [100.0]
    for pair in pairs:
        found.append(100 * pair[1] / first if pair and first else found[-1])
    return found


def _draw_parameters(axes: Any, shares: list[float], shown: list[int]) -> None:
    heights = [shares[number] for number in shown]
    axes.bar(range(len(shown)), heights, color=[BEFORE, *[AFTER] * (len(shown) - 1)], width=0.5, alpha=0.75)
    how = {"textcoords": "offset points", "ha": "center", "color": MUTED, "fontsize": SMALL}
    for place, share in enumerate(heights):
        axes.annotate(f"{share:.0f} %", (place, share), (0, 3), **how)
    axes.set_ylim(0, max(140, 1.4 * max(heights)))
    axes.set_yticks([])
    axes.set_ylabel("size")
    tidy(axes, grid="x")
    axes.grid(visible=False)
