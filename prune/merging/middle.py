"""Changes of middling size (Model Breadcrumbs, https://arxiv.org/abs/2312.06795)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from prune.errors import PruneError
from prune.merging.blocks import Blocks
from prune.merging.sparsify import nth_largest


def refuse_gamma(gamma: Iterable[float]) -> None:
    for share in gamma:
        if not 0 <= share < 1:
            raise PruneError(f"gamma is the share of the largest changes that goes, not {share:g}", where="gamma")


def bounds(blocks: Blocks, density: Sequence[float], gamma: Sequence[float]) -> list[tuple[float, float]]:
    """Per input the least and the greatest size that stays: gamma of the largest go, and the smallest down to density.

    Where both would leave less than `density`, fewer of the largest go.
    """
    ranks = []
    for share, outliers in zip(density, gamma, strict=True):
        kept = int(share * blocks.entries)
        bottom = max(0, blocks.entries - kept - int(outliers * blocks.entries))
        last = blocks.entries - bottom  # counted from the largest
        ranks.append([last - kept + 1, last] if kept > 0 and share < 1 else [])
    found = nth_largest(blocks, ranks) if any(ranks) else [[] for _ in ranks]
    everything, nothing = (0.0, float("inf")), (float("inf"), 0.0)
    return [
        (own[1], own[0]) if own else (everything if share >= 1 else nothing)
        for own, share in zip(found, density, strict=True)
    ]


def middle(deltas: Sequence[Tensor], found: Sequence[tuple[float, float]]) -> list[Tensor]:
    """Changes, or their sizes, whose size lies within the bounds, both included; the others are zero."""
    kept = []
    for delta, (least, most) in zip(deltas, found, strict=True):
        size = delta.abs()
        kept.append(delta.masked_fill((size < least) | (size > most), 0))
    return kept
