"""SCE: the entries on which the models differ most, weighted by their size, by election.

Source: https://arxiv.org/abs/2408.07990
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prune.errors import PruneError
from prune.merging.block import Block

BASE = "needed"
LEAST, MOST = 0, None


def whole(**_: Any) -> bool:
    return True


def check(*, select_topk: float, **_: Any) -> None:
    if not 0 <= select_topk <= 1:
        raise PruneError(f"select_topk is a share, from 0 to 1, not {select_topk:g}", where="select_topk")


def merge(block: Block, facts: None, *, select_topk: float = 1.0, int8_mask: bool = False) -> Tensor:  # noqa: ARG001
    """Select the share with most variance over the models, calculate weights (mean squares), erase minorities."""
    assert block.base is not None
    if not block.tensors:
        return block.base
    deltas = torch.stack(block.deltas)  # (models, ...)
    if select_topk < 1:
        deltas = deltas * _selected(deltas, select_topk)
    squares = deltas.square().reshape(len(deltas), -1).mean(dim=1)
    total = squares.sum()
    weights = squares / total if total >= 1e-6 else torch.full_like(squares, 1 / len(squares))
    agree = torch.where(deltas.sum(dim=0) >= 0, deltas > 0, deltas < 0)
    kept = weights.view(-1, *[1] * block.base.ndim) * agree
    return block.base + (deltas * kept).sum(dim=0) / kept.sum(dim=0).clamp(min=1e-6)


def _selected(deltas: Tensor, share: float) -> Tensor:
    """Ones where the variance is among the largest `share` of those that are not zero."""
    variance = deltas.var(dim=0, unbiased=False)
    count = int(int(torch.count_nonzero(variance)) * share)
    if count == 0:
        return torch.zeros_like(variance)
    least = torch.kthvalue(variance.reshape(-1), variance.numel() - count + 1).values
    return (variance >= least).to(deltas.dtype)
