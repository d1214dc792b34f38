"""The table and the plot of what a merge did to each layer."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prune.merging.profile import table

COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#a463f2")


def write(rows: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """layers.csv, and layers.svg with norms, cosine and sign conflicts by layer; the same rows give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    sheet, plot = folder / "layers.csv", folder / "layers.svg"
    with sheet.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(table(rows))
    _draw([row for row in rows if isinstance(row["layer"], int)], plot)
    return [sheet, plot]


def _draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(name for row in rows for name in row["delta_norm"]))
    numbers = [row["layer"] for row in rows]
    figure = Figure(figsize=(8, 6))
    figure.subplots_adjust(left=0.12, right=0.98, top=0.98, bottom=0.09, hspace=0.12)  # a layout engine draws twice
    norms, cosine, conflicts = figure.subplots(3, sharex=True)
    for place, model in enumerate(models):
        values = [row["delta_norm"].get(model) for row in rows]
        norms.plot(numbers, values, marker="o", color=COLOURS[place % len(COLOURS)], label=model)
    norms.set_ylabel("norm of change")
    cosine.plot(numbers, [row["cosine"] for row in rows], marker="o", color="#4269d0")
    cosine.axhline(0, color="#999999", linewidth=0.8)
    cosine.set_ylabel("cosine of changes")
    conflicts.bar(numbers, [100 * row["sign_conflicts"] for row in rows], color="#9c6b4e")
    conflicts.set_ylabel("signs differ (%)")
    conflicts.set_xlabel("layer")
    for axes in (norms, cosine, conflicts):
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(y=0.15)
        axes.set_ylim(min(0, axes.get_ylim()[0]), axes.get_ylim()[1])
        axes.xaxis.get_major_locator().set_params(integer=True)
    if models:
        norms.legend(frameon=False)
    with mpl.rc_context({"svg.hashsalt": "prune"}):
        figure.savefig(path, format="svg", metadata={"Date": None})
