"""DARE: changes dropped at random and the others made larger instead, then summed.

Source: https://arxiv.org/abs/2311.03099
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from prune.merging.block import Block, Each
from prune.merging.blocks import Blocks
from prune.merging.consensus import combine
from prune.merging.drop import dropped
from prune.merging.sparsify import refuse_density, rescaling, scaled

BASE = "needed"
LEAST, MOST = 0, None
DRAWS = True


def check(*, density: Sequence[float], **_: Any) -> None:
    refuse_density(density)


def measure(blocks: Blocks, *, density: Sequence[float], rescale: bool, **_: Any) -> list[Tensor] | None:
    """What each input's sparse change is multiplied by: L1 of the whole over L1 of what stayed."""
    return rescaling(blocks, lambda block, sizes: dropped(block, sizes, density)) if rescale else None


def merge(
    block: Block,
    facts: list[Tensor] | None,
    *,
    weight: Each,
    density: Each = (1.0,),
    lambda_: float = 1.0,
    normalize: bool = False,
    rescale: bool = True,  # noqa: ARG001
    int8_mask: bool = False,  # noqa: ARG001
) -> Tensor:
    """base + lambda x the sum of w_i d_i, of which each entry stays with probability `density`."""
    assert block.base is not None
    deltas = scaled(dropped(block, block.deltas, density), facts)
    return combine(block.base, deltas, weight, elect=False, normalize=normalize, lambda_=lambda_)
