"""How recovery went: the training loss, and the loss on held-out text."""

from __future__ import annotations

from itertools import pairwise
from statistics import fmean
from typing import Any

from prune.report.blocks import Block, Data, Facts, Plot, Points, Prose, Section
from prune.report.drawing import AFTER, BEFORE, CUT, figure, plot, tidy


def section(facts: Facts) -> Section | None:
    blocks: list[Block] = []
    for number, found in facts.records("training"):
        word = facts.steps[number - 1]["word"]
        blocks.append(Prose(_said(number, word, found, facts.timings)))
        if found.get("kept_start"):
            blocks.append(
                Points([f"step {number}: training did not help, and the model it began with was kept"], "warn")
            )
        if len(found.get("curve", [])) > 1:
            blocks.append(_plot(number, word, found))
    return Section("training", "Recovery", blocks, beside=True) if blocks else None


def _said(number: int, word: str, found: dict[str, Any], timings: Any) -> str:
    parts = [f"Step {number}, {word}"]
    if found.get("before") is not None and found.get("after") is not None:
        parts.append(f"held-out loss {found['before']:.4g} before, {found['after']:.4g} after")
    if found.get("tokens"):
        parts.append(f"{found['tokens']:,} tokens")
    speed = timings[number - 1].get("tokens_per_second") if number <= len(timings) else None
    if isinstance(speed, (int, float)):
        parts.append(f"{speed:,.0f} tokens a second")
    return ": ".join([parts[0], ", ".join(parts[1:])]) + "." if parts[1:] else parts[0] + "."


def _plot(number: int, word: str, found: dict[str, Any]) -> Plot:
    curve = found["curve"]
    losses = [(p["step"], p.get("text", p["loss"])) for p in curve if p.get("loss") is not None]
    alike = any("text" in p for p in curve)
    held_out = [(p["step"], p["held_out"]) for p in curve if p.get("held_out") is not None]
    with figure(5.0, 2.8) as drawn:
        axes: Any = drawn.subplots()
        if losses:
            name = "training text" if alike else "training"
            means = _between(losses, [step for step, _ in held_out])
            axes.plot(*zip(*losses, strict=True), color=BEFORE, linewidth=0.9, alpha=0.4 if means else 1, label=name)
            if means:
                axes.plot(*zip(*means, strict=True), color=BEFORE, linewidth=1.6, label="its mean")
        if held_out:
            axes.plot(
                *zip(*held_out, strict=True), color=AFTER, linewidth=1.9, marker="o", markersize=4, label="held out"
            )
        best = found.get("best_step")
        if best is not None:
            axes.axvline(best, color=CUT, linewidth=1, linestyle=(0, (3, 3)), label="kept")
        axes.set_xlabel("step")
        axes.set_ylabel("cross-entropy, nats" if alike else "loss, nats")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=4, columnspacing=1.2)
        tidy(axes)
        rows = [(p["step"], p.get("loss"), p.get("text"), p.get("held_out")) for p in curve]
        data = Data(("step", "loss", "text", "held_out"), rows)
        return plot(f"training-{number}", f"Loss in step {number}: {word}", _parts(found), drawn, data)


def _between(losses: list[tuple[int, float]], looks: list[int]) -> list[tuple[float, float]]:
    """The mean loss between two looks at held-out text, in the middle of them: single steps say little."""
    spans = [(a, b, [loss for step, loss in losses if a < step <= b]) for a, b in pairwise(looks)]
    return [((a + b) / 2, fmean(found)) for a, b, found in spans if len(found) > 1]


def _parts(found: dict[str, Any]) -> str:
    parts = found.get("parts")
    if not isinstance(parts, dict) or not parts:
        return "The training loss is the objective's own; held out is the loss on text that is not trained on."
    return "Parts of the loss at the end: " + ", ".join(f"{k} {_number(v)}" for k, v in parts.items()) + "."


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
