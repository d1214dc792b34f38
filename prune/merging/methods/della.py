"""DELLA: the smaller a change in its row, the likelier it is dropped; those that agree are summed.

Source: https://arxiv.org/abs/2406.11617
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from prune.errors import PruneError
from prune.merging.block import Block, Each
from prune.merging.blocks import Blocks
from prune.merging.consensus import combine
from prune.merging.drop import dropped_by_rank
from prune.merging.sparsify import refuse_density, rescaling, scaled

BASE = "needed"
LEAST, MOST = 0, None
DRAWS = True


def whole(**_: Any) -> bool:
    return True


def check(*, density: Sequence[float], epsilon: Sequence[float], **_: Any) -> None:
    refuse_density(density)
    for share, slack in zip(density, epsilon, strict=True):
        if 0 < share < 1 and not (slack < share and share + slack < 1):
            raise PruneError(
                f"density {share:g} less and plus epsilon {slack:g} must lie between 0 and 1", where="epsilon"
            )


def measure(
    blocks: Blocks, *, density: Sequence[float], epsilon: Sequence[float], rescale: bool, **_: Any
) -> list[Tensor] | None:
    """What each input's sparse change is multiplied by: L1 of the whole over L1 of what stayed."""
    return rescaling(blocks, lambda block, sizes: dropped_by_rank(block, sizes, density, epsilon)) if rescale else None


def merge(
    block: Block,
    facts: list[Tensor] | None,
    *,
    weight: Each,
    density: Each = (1.0,),
    epsilon: Each = (0.15,),
    lambda_: float = 1.0,
    normalize: bool = True,
    rescale: bool = True,  # noqa: ARG001
    int8_mask: bool = False,  # noqa: ARG001
) -> Tensor:
    """TIES of changes of which an entry stays with density - epsilon to density + epsilon."""
    assert block.base is not None
    deltas = scaled(dropped_by_rank(block, block.deltas, density, epsilon), facts)
    return combine(block.base, deltas, weight, elect=True, normalize=normalize, lambda_=lambda_)
