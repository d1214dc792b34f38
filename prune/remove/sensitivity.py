"""Sensitivity: what predictions lose as each group shrinks alone, as a table and a plot."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from prune.model.groups import Group, groups
from prune.model.model import Model
from prune.model.walk import Batch, logits
from prune.remove.choose import structural
from prune.remove.cut import cut
from prune.remove.divergence import divergence
from prune.remove.score import score

RATIOS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Point:
    """One group with some of its units removed, and the KL divergence from the whole model, nats per position."""

    group: str
    kind: str
    layer: int | None
    removed: int
    units: int
    divergence: float


def sensitivity(
    model: Model,
    batches: Sequence[Batch],
    *,
    what: Sequence[str] = ("channels", "heads"),
    ratios: Sequence[float] = RATIOS,
    criterion: str = "wanda",
    **options: Any,
) -> list[Point]:
    """Remove `ratios` of the lowest-scored units of one group after the other, all else whole; nothing is mended.

    For "layers", each layer is dropped alone and stands as a point with one unit removed. `options` are those of
    `walk`. Raises PruneError for a kind the model lacks.
    """
    inside = groups(model, [kind for kind in what if kind != "layers"])
    scores = score(model, inside, batches, criterion=criterion, **options) if inside else {}
    expected = list(logits(model, batches, **options))
    points = []
    for group in inside:
        for ratio in ratios:
            kept = lowest_removed(group, scores[group.name], ratio)
            small = cut(model, {group.name: kept})
            lost = divergence(small, model, batches, expected=expected, **options)
            points.append(Point(group.name, group.kind, group.layer, group.units - len(kept), group.units, lost))
    for group in groups(model, "layers") if "layers" in what else ():
        for layer in range(group.units):
            small = cut(model, {"layers": [other for other in range(group.units) if other != layer]})
            lost = divergence(small, model, batches, expected=expected, **options)
            points.append(Point(f"layers.{layer}", "layers", layer, 1, 1, lost))
    return points


def lowest_removed(group: Group, scores: Tensor, ratio: float) -> list[int]:
    """The units that stay when about `ratio` of a group's lowest-scored ones go, equally many of each partition."""
    allowed = [count for count in structural(group) if count >= group.minimum]
    kept = min(allowed, key=lambda count: abs(count - group.units * (1 - ratio)))
    each = kept // len(group.partitions)
    best = [sorted(part, key=lambda unit: -scores[unit].item())[:each] for part in group.partitions]
    return sorted(unit for part in best for unit in part)


def write_table(points: Sequence[Point], path: Path) -> None:
    """The points as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(asdict(points[0])))
        writer.writeheader()
        writer.writerows(asdict(point) for point in points)


def write_plot(points: Sequence[Point], path: Path) -> None:
    """One panel for each kind: divergence against the fraction removed, a line for each layer, as SVG."""
    from matplotlib.figure import Figure  # an extra; and slow to import

    kinds = list(dict.fromkeys(point.kind for point in points))
    figure = Figure(figsize=(4.5 * len(kinds), 3.5), layout="constrained")
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        lines: Mapping[int | None, list[Point]] = _by_layer([point for point in points if point.kind == kind])
        if kind == "layers":
            axes.bar([own[0].layer or 0 for own in lines.values()], [own[0].divergence for own in lines.values()])
            axes.set_xlabel("layer dropped")
        else:
            for layer, own in lines.items():
                axes.plot([p.removed / p.units for p in own], [p.divergence for p in own], marker="o", label=str(layer))
            axes.legend(title="layer", fontsize="x-small")
            axes.set_xlabel("fraction removed")
        axes.set_title(kind)
        axes.set_ylabel("KL divergence (nats)")
        axes.set_yscale("log")
    figure.savefig(path, format="svg")


def _by_layer(points: Sequence[Point]) -> dict[int | None, list[Point]]:
    found: dict[int | None, list[Point]] = {}
    for point in points:
        found.setdefault(point.layer, []).append(point)
    return found
