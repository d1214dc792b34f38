"""Changes dropped at random (DARE, https://arxiv.org/abs/2311.03099; DELLA, https://arxiv.org/abs/2406.11617)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prune.merging.block import Block


def dropped(block: Block, deltas: Sequence[Tensor], density: Sequence[float]) -> list[Tensor]:
    """A block's changes, or their sizes: every entry stays with probability `density`."""
    return [
        delta if share >= 1 else delta * block.draw(number, share, delta)
        for number, (delta, share) in enumerate(zip(deltas, density, strict=True))
    ]


def dropped_by_rank(
    block: Block, deltas: Sequence[Tensor], density: Sequence[float], epsilon: Sequence[float]
) -> list[Tensor]:
    """The larger a change is in its row, the likelier it stays: from density - epsilon to density + epsilon."""
    found = []
    for number, (delta, share, slack) in enumerate(zip(deltas, density, epsilon, strict=True)):
        if share >= 1:
            found.append(delta)
        elif share <= 0:
            found.append(torch.zeros_like(delta))
        else:
            chance = (share - slack) + _ranks(delta) * 2 * slack
            found.append(delta * block.draw(number, chance, delta))
    return found


def _ranks(delta: Tensor) -> Tensor:
    """Of every entry the rank of its size in its row, from 0 for the smallest to 1 for the largest."""
    rows = delta.abs().reshape(-1, delta.shape[-1]) if delta.ndim else delta.abs().reshape(1, 1)
    order = rows.argsort(dim=1)
    places = torch.arange(rows.shape[1], dtype=torch.float32, device=delta.device)
    ranks = torch.empty_like(rows, dtype=torch.float32).scatter_(1, order, places.expand_as(rows))
    return (ranks / max(rows.shape[1] - 1, 1)).reshape(delta.shape)
