"""Sensitivity as a table (CSV) and a picture: a panel for each kind that shrinks, one for what is left out whole."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prune.errors import PruneError
from prune.remove.sensitivity import WHOLE, Point

PANEL = (4.2, 3.4)  # inches
FORMATS = (".svg", ".png", ".pdf")


def write_table(points: Sequence[Point], path: Path) -> None:
    """The points as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(asdict(points[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(point) for point in points)


def check_plot(path: Path) -> None:
    """PruneError for a picture of a kind that is not drawn."""
    if path.suffix.lower() not in FORMATS:
        raise PruneError(f"a plot is one of {', '.join(FORMATS)}, not {path.suffix or path.name!r}", where=str(path))


def write_plot(points: Sequence[Point], path: Path) -> None:
    """Divergence against the fraction removed, a line for each layer; bars for layers, attentions and MLPs left out.

    The same points give the same bytes. Raises PruneError for a suffix other than .svg, .png or .pdf.
    """
    import matplotlib as mpl  # slow to import
    from matplotlib.figure import Figure

    check_plot(path)
    lines = list(dict.fromkeys(point.kind for point in points if point.kind not in WHOLE))
    bars = [point for point in points if point.kind in WHOLE]
    count = len(lines) + bool(bars)
    with mpl.rc_context({"svg.hashsalt": "prune"}):
        figure = Figure(figsize=(PANEL[0] * count, PANEL[1]), layout="constrained")
        panels = figure.subplots(1, count, squeeze=False, sharey=True)[0]
        for axes, kind in zip(panels, lines, strict=False):
            _lines(figure, axes, [point for point in points if point.kind == kind])
            axes.set_title(kind)
        if bars:
            _bars(panels[-1], bars)
        for axes in panels:
            axes.set_yscale("log")
            axes.grid(axis="y", alpha=0.3)
        panels[0].set_ylabel("KL divergence from the whole model (nats)")
        figure.savefig(path, dpi=130, metadata={"Date": None} if path.suffix == ".svg" else None)


def _lines(figure: Any, axes: Any, points: Sequence[Point]) -> None:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    layers = sorted({point.layer for point in points})
    colours: Any = ScalarMappable(Normalize(layers[0], max(layers[-1], layers[0] + 1)), colormaps["viridis"])
    for layer in layers:
        own = [point for point in points if point.layer == layer]
        shares = [point.removed / point.units for point in own]
        axes.plot(shares, [point.divergence for point in own], marker="o", ms=3, lw=1.2, color=colours.to_rgba(layer))
    axes.set_xlabel("fraction removed")
    axes.set_xlim(0, 1)
    bar = figure.colorbar(colours, ax=axes, label="layer", pad=0.01)
    bar.ax.yaxis.get_major_locator().set_params(integer=True)


def _bars(axes: Any, points: Sequence[Point]) -> None:
    kinds = list(dict.fromkeys(point.kind for point in points))
    for number, kind in enumerate(kinds):
        own = [point for point in points if point.kind == kind]
        places = [point.layer + (number - (len(kinds) - 1) / 2) * 0.8 / len(kinds) for point in own]
        axes.bar(places, [point.divergence for point in own], 0.8 / len(kinds), label=kind)
    axes.set_title("left out whole, one at a time")
    axes.set_xlabel("layer")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize="small", frameon=False)
