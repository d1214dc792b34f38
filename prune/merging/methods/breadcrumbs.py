"""Breadcrumbs: of each model's changes neither the smallest nor the very largest.

Source: https://arxiv.org/abs/2312.06795
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from prune.merging.block import Block, Each
from prune.merging.blocks import Blocks
from prune.merging.consensus import combine
from prune.merging.middle import bounds, middle, refuse_gamma
from prune.merging.sparsify import refuse_density, rescaling, scaled

BASE = "needed"
LEAST, MOST = 0, None


def check(*, density: Sequence[float], gamma: Sequence[float], **_: Any) -> None:
    refuse_density(density)
    refuse_gamma(gamma)


def measure(
    blocks: Blocks, *, density: Sequence[float], gamma: Sequence[float], rescale: bool, **_: Any
) -> tuple[list[tuple[float, float]], list[Tensor] | None]:
    """Per input the least and the greatest size that stays, and what the sparse change is rescaled by."""
    found = bounds(blocks, density, gamma)
    return found, rescaling(blocks, lambda _, sizes: middle(sizes, found)) if rescale else None


def merge(
    block: Block,
    facts: tuple[list[tuple[float, float]], list[Tensor] | None],
    *,
    weight: Each,
    density: Each = (1.0,),  # noqa: ARG001
    gamma: Each = (0.01,),  # noqa: ARG001
    lambda_: float = 1.0,
    normalize: bool = False,
    rescale: bool = False,  # noqa: ARG001
    int8_mask: bool = False,  # noqa: ARG001
) -> Tensor:
    """The share `gamma` of the largest changes goes, then of the smallest as many as leave the share `density`."""
    assert block.base is not None
    deltas = scaled(middle(block.deltas, facts[0]), facts[1])
    return combine(block.base, deltas, weight, elect=False, normalize=normalize, lambda_=lambda_)
