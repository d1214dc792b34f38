"""Task arithmetic: what the models learnt over the base, weighted and added to it.

Source: https://arxiv.org/abs/2212.04089
"""

from __future__ import annotations

from torch import Tensor

from prune.merging.block import Block, Each
from prune.merging.consensus import combine

BASE = "needed"
LEAST, MOST = 0, None


def merge(
    block: Block,
    facts: None,  # noqa: ARG001
    *,
    weight: Each,
    lambda_: float = 1.0,
    normalize: bool = False,
    int8_mask: bool = False,  # noqa: ARG001 - saves others memory; nothing here needs it
) -> Tensor:
    """base + lambda x the sum of w_i d_i"""
    assert block.base is not None
    return combine(block.base, block.deltas, weight, elect=False, normalize=normalize, lambda_=lambda_)
