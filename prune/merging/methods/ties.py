"""TIES: the largest changes of each model, those that agree on a sign summed.

Source: https://arxiv.org/abs/2306.01708
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from prune.merging.block import Block, Each
from prune.merging.blocks import Blocks
from prune.merging.consensus import combine
from prune.merging.sparsify import nth_largest, refuse_density, rescaling, scaled, trimmed

BASE = "needed"
LEAST, MOST = 0, None


def check(*, density: Sequence[float], **_: Any) -> None:
    refuse_density(density)


def measure(
    blocks: Blocks, *, density: Sequence[float], rescale: bool, **_: Any
) -> tuple[list[float | None], list[Tensor] | None]:
    """Per input the smallest change that stays (None: all stay), and what the sparse change is rescaled by."""
    ranks = [[max(1, int(share * blocks.entries))] if 0 < share < 1 else [] for share in density]
    found = nth_largest(blocks, ranks) if any(ranks) else [[] for _ in ranks]
    bounds = [
        own[0] if own else (None if share >= 1 else float("inf")) for own, share in zip(found, density, strict=True)
    ]
    return bounds, rescaling(blocks, lambda _, sizes: _trimmed(sizes, bounds)) if rescale else None


def merge(
    block: Block,
    facts: tuple[list[float | None], list[Tensor] | None],
    *,
    weight: Each,
    density: Each = (1.0,),  # noqa: ARG001
    lambda_: float = 1.0,
    normalize: bool = True,
    rescale: bool = False,  # noqa: ARG001
    int8_mask: bool = False,  # noqa: ARG001
) -> Tensor:
    """Changes below a model's threshold go; of the others, weighted, those with the sign of their sum are summed."""
    assert block.base is not None
    deltas = scaled(_trimmed(block.deltas, facts[0]), facts[1])
    return combine(block.base, deltas, weight, elect=True, normalize=normalize, lambda_=lambda_)


def _trimmed(deltas: Sequence[Tensor], bounds: Sequence[float | None]) -> list[Tensor]:
    return [delta if bound is None else trimmed(delta, bound) for delta, bound in zip(deltas, bounds, strict=True)]
