"""Arcee Fusion: only the changes that matter, by size and by how far a row's distribution moved.

Source: https://arcee.ai
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prune.merging.block import Block

BASE = "needed"
LEAST, MOST = 1, 1
TINY = 1e-8


def whole(**_: Any) -> bool:
    return True


def merge(block: Block, facts: None) -> Tensor:  # noqa: ARG001
    """The other model's entry where |change| x KL(softmax of its row, of the base's) is at least median + 1.5 x IQR."""
    assert block.base is not None
    base, other = block.base, block.tensors[0]
    after, before = (torch.softmax(own, dim=-1) + TINY for own in (other, base))
    moved = (after * torch.log(after / before)).sum(dim=-1, keepdim=True)
    importance = (other - base).abs() * moved
    low, middle, high = (_quantile(importance, share) for share in (0.25, 0.5, 0.75))
    return base + (other - base) * (importance >= middle + 1.5 * (high - low))


def _quantile(values: Tensor, share: float) -> Tensor:
    entries = values.reshape(-1)
    return torch.kthvalue(entries, int(share * (len(entries) - 1)) + 1).values
