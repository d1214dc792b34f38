"""Weighted changes put together, with or without an election of signs (TIES, https://arxiv.org/abs/2306.01708)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def combine(
    base: Tensor,
    deltas: Sequence[Tensor],
    weight: Sequence[float],
    *,
    elect: bool,
    normalize: bool,
    lambda_: float,
) -> Tensor:
    """base + lambda x the sum of w_i d_i.

    With `elect` only entries that have the sign of the weighted sum (0 counts as +) are summed. With `normalize` the
    sum is divided by that of the weights that took part in it (1 where there are none).
    """
    stacked = torch.stack([*deltas])  # (inputs, ...)
    weights = torch.tensor(weight, dtype=stacked.dtype, device=stacked.device).view(-1, *[1] * base.ndim)
    stacked *= weights
    total = stacked.sum(dim=0)
    kept = weights
    if elect:
        sign = torch.copysign(torch.ones_like(total), total + 0.0)  # -0 + 0 is 0
        stacked *= sign  # what agrees is above zero now
        if normalize:
            kept = weights * stacked.clamp(min=0).sign_()
        total = stacked.clamp_(min=0).sum(dim=0).mul_(sign)
    if normalize:
        divisor = kept.sum(dim=0)
        total /= divisor + (1 - divisor.sign().abs_()) if elect else divisor.masked_fill_(divisor.abs() < 1e-8, 1)
    if lambda_ != 1:
        total *= lambda_
    return base + total
