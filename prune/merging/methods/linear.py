"""Linear: the weighted average of the models.

Source: https://arxiv.org/abs/2203.05482
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prune.errors import PruneError
from prune.merging.block import Block, Each

BASE = "input"
LEAST, MOST = 1, None


def check(*, weight: Sequence[float], normalize: bool, **_: Any) -> None:
    if normalize and abs(sum(weight)) < 1e-8:
        raise PruneError("the weights sum to zero, so there is no average", where="weight")


def merge(block: Block, facts: None, *, weight: Each, normalize: bool = True) -> Tensor:  # noqa: ARG001
    """The sum of w_i x_i in the config's order, over the sum of the weights unless `normalize` is false."""
    first = block.tensors[0]
    wide = torch.promote_types(first.dtype, torch.float32)
    weights = torch.tensor(weight, dtype=wide, device=first.device)
    result = torch.zeros_like(first, dtype=wide)
    for tensor, own in zip(block.tensors, weights, strict=True):
        result.addcmul_(tensor, own.view([1] * first.ndim))
    return result.div_(weights.sum()) if normalize else result
