"""What a step keeps of its scores: enough to draw them layer by layer with the cut, little beside the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prune.model.groups import Group

BINS = 64  # numbers kept of one group
TOTAL = 4096  # numbers kept of one kind: models of many layers get fewer bins in each


def profile(groups: Sequence[Group], scores: Mapping[str, Tensor], plan: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Kind -> {order, layers, units, mean, kept}; the last two hold a row of bins for each group.

    `mean` is the mean score in a bin and `kept` the share of its units that the plan keeps. A group with no more units
    than bins has one unit in each, in its own order ("unit"); a larger one is sorted from the lowest score to the
    highest and split into bins of equal size ("score").
    """
    found: dict[str, Any] = {}
    for kind in dict.fromkeys(group.kind for group in groups):
        own = [group for group in groups if group.kind == kind and group.name in scores]
        if own:
            found[kind] = _of_kind(own, scores, plan)
    return found


def _of_kind(own: Sequence[Group], scores: Mapping[str, Tensor], plan: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    bins = min(BINS, max(TOTAL // len(own), 8))
    by_score = max(group.units for group in own) > bins
    rows = [_row(scores[group.name], plan.get(group.name), bins, by_score) for group in own]
    return {
        "order": "score" if by_score else "unit",
        "layers": [group.layer for group in own],
        "units": [group.units for group in own],
        "mean": [mean for mean, _ in rows],
        "kept": [kept for _, kept in rows],
    }


def _row(values: Tensor, kept: Sequence[int] | None, bins: int, by_score: bool) -> tuple[list[float], list[float]]:
    """Mean score and share kept of each bin; `kept` None: the plan leaves the group whole."""
    values = values.detach().float().cpu()
    stays = torch.ones(len(values))
    if kept is not None:
        stays = torch.zeros(len(values)).index_fill(0, torch.tensor(list(kept), dtype=torch.long), 1.0)
    if by_score:
        order = values.argsort(stable=True)
        values, stays = values[order], stays[order]
    count = min(bins, len(values))
    parts = zip(values.tensor_split(count), stays.tensor_split(count), strict=True)
    means, shares = zip(*((part.mean().item(), stay.mean().item()) for part, stay in parts), strict=True)
    return [_short(mean) for mean in means], [_short(share) for share in shares]


def _short(value: float) -> float:
    """Four digits, which a picture shows and a file need not exceed."""
    return float(f"{value:.4g}")
