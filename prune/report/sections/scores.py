"""The scores that decided, layer by layer, with the cut drawn in."""

from __future__ import annotations

from typing import Any

import numpy as np

from prune.report.blocks import Block, Data, Facts, Plot, Prose, Section
from prune.report.drawing import AFTER, CUT, INK, figure, plot, tidy

WIDE = 30.0  # times the lowest score from which on a logarithmic axis shows more
FADED = 0.22  # how much of its colour a removed unit keeps


def section(facts: Facts) -> Section | None:
    found: list[Plot] = []
    for number, kinds in facts.records("scores"):
        criterion = facts.steps[number - 1]["record"].get("criterion") or "scores"
        for kind, scores in kinds.items():
            if any(scores["units"]):
                found.append(_plot(number, kind, criterion, scores))
    if not found:
        return None
    lead = Prose("High is kept. What was removed is faded or crossed out; an orange line is the edge of the cut.")
    blocks: list[Block] = [lead, *found]
    return Section("scores", "Scores", blocks)


def _plot(number: int, kind: str, criterion: str, scores: dict[str, Any]) -> Plot:
    title = f"Step {number}: {kind} by {criterion}"
    name = f"scores-{number}-{''.join(c for c in kind if c.isalnum() or c in '-_')}"
    return (_bars if len(scores["mean"]) == 1 and scores["order"] == "unit" else _map)(name, title, kind, scores)


def _bars(name: str, title: str, kind: str, scores: dict[str, Any]) -> Plot:
    """One group, say the layers of a model: a bar for each unit."""
    values, kept = _numbers(scores["mean"])[0], scores["kept"][0]
    with figure(5.0, 2.5) as drawn:
        axes: Any = drawn.subplots()
        colours = [AFTER if stays else CUT for stays in kept]
        axes.bar(range(len(values)), np.nan_to_num(values), color=colours, width=0.72)
        positive = values[np.isfinite(values) & (values > 0)]
        if len(positive) == len(values) and values.max() > WIDE * values.min():
            axes.set_yscale("log")
        axes.set_xlabel(f"{kind.removesuffix('s')} (orange: removed)")
        axes.set_ylabel("score")
        axes.xaxis.get_major_locator().set_params(integer=True)
        tidy(axes)
        return plot(name, title, "One bar for each; the lowest go.", drawn, _data(kind, scores))


def _map(name: str, title: str, kind: str, scores: dict[str, Any]) -> Plot:
    """A row for each layer, a cell for each unit or bin of units."""
    widest = max(map(len, scores["mean"]))
    rows = np.full((len(scores["mean"]), widest), np.nan)
    kept = np.ones_like(rows)
    for number, (mean, stays) in enumerate(zip(_numbers(scores["mean"]), scores["kept"], strict=True)):
        rows[number, : len(mean)], kept[number, : len(stays)] = _relative(mean), stays
    by_score = scores["order"] == "score"
    with figure(5.0, min(max(1.4 + 0.17 * len(rows), 2.2), 9.0)) as drawn:
        axes: Any = drawn.subplots()
        image = _image(axes, rows, kept)
        if by_score:
            _edges(axes, kept)
            axes.set_xticks([-0.5, widest / 2 - 0.5, widest - 0.5], ["lowest", "half", "highest"])
            axes.set_xlabel(f"{kind} of a layer, sorted by score")
        else:
            _crosses(axes, kept, drawn.get_size_inches())
            axes.set_xlabel(kind.removesuffix("s").replace("_", " "))
            axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel("layer")
        _layer_ticks(axes, scores["layers"])
        axes.spines[:].set_visible(False)
        bar = drawn.colorbar(image, ax=axes, fraction=0.045, pad=0.02)
        bar.outline.set_visible(False)
        bar.set_label("score / mean of the layer", color=INK)
        caption = "Each row is divided by its own mean, so that layers can be compared."
        if by_score:
            caption += f" A cell is one of {widest} bins of equal size."
        return plot(name, title, caption, drawn, _data(kind, scores))


def _numbers(rows: list[list[float | None]]) -> list[np.ndarray]:
    return [np.array([np.nan if value is None else value for value in row], dtype=float) for row in rows]


def _relative(values: np.ndarray) -> np.ndarray:
    """Divided by the mean where that means something, else spread over 0 to 2."""
    known = values[np.isfinite(values)]
    if not len(known):
        return values
    if known.min() >= 0 and known.mean() > 0:
        return np.asarray(values / known.mean())
    span = known.max() - known.min()
    return np.asarray(2 * (values - known.min()) / span if span > 0 else np.ones_like(values))


def _image(axes: Any, rows: np.ndarray, kept: np.ndarray) -> Any:
    import matplotlib as mpl
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    known = rows[np.isfinite(rows)]
    high = float(np.quantile(known, 0.97)) if len(known) else 1.0
    low = float(known.min()) if len(known) else 0.0
    scale = ScalarMappable(Normalize(low, high if high > low else low + 1), mpl.colormaps["viridis"])
    colours = np.array(scale.to_rgba(np.nan_to_num(rows)))  # (layers, bins, 4)
    colours[..., 3] = np.where(np.isfinite(rows), FADED + (1 - FADED) * kept, 0)
    axes.imshow(colours, aspect="auto", interpolation="none")
    return scale


def _edges(axes: Any, kept: np.ndarray) -> None:
    """A line where the removed bins of each layer end, where they are the lowest ones."""
    if (np.diff(kept, axis=1) < -1e-6).any() or kept.min() == 1:
        return
    edge = (1 - kept).sum(axis=1) - 0.5
    down = np.repeat(edge, 2), np.stack([np.arange(len(edge)) - 0.5, np.arange(len(edge)) + 0.5], 1).reshape(-1)
    axes.plot(*down, color=CUT, linewidth=2, solid_joinstyle="miter")
    axes.set_ylim(len(edge) - 0.5, -0.5)


def _crosses(axes: Any, kept: np.ndarray, size: Any) -> None:
    """Every removed unit crossed out, all in one path."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    high, wide = size[1] * 0.75 / len(kept), size[0] * 0.75 / kept.shape[1]  # inches of a cell, about
    across, down = (0.3 * min(high, wide) / side for side in (wide, high))
    ends, codes = list[tuple[float, float]](), list[Any]()
    for row, column in zip(*np.nonzero(kept < 0.5), strict=True):
        for slope in (-1, 1):
            ends += [(column - across, row - down * slope), (column + across, row + down * slope)]
            codes += [Path.MOVETO, Path.LINETO]
    if ends:
        axes.add_patch(PathPatch(Path(ends, codes), edgecolor=CUT, facecolor="none", linewidth=1.4))


def _layer_ticks(axes: Any, layers: list[int | None]) -> None:
    step = max(len(layers) // 16, 1)
    axes.set_yticks(range(0, len(layers), step), [str(layers[n]) for n in range(0, len(layers), step)])


def _data(kind: str, scores: dict[str, Any]) -> Data:
    rows = [
        (kind, layer, units, number, mean, kept)
        for layer, units, means, shares in zip(*(scores[n] for n in ("layers", "units", "mean", "kept")), strict=True)
        for number, (mean, kept) in enumerate(zip(means, shares, strict=True))
    ]
    return Data(("kind", "layer", "units", "bin", "mean_score", "kept_share"), rows)
