"""How far a cut model's predictions are from the uncut one's: mean Kullback-Leibler divergence per position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prune.model.model import Model
from prune.model.walk import Batch, logits


def kl(reference: Tensor, other: Tensor, mask: Tensor | None = None) -> tuple[float, int]:
    """Summed KL(reference || other) of logits (..., classes) in nats, and how many positions it was summed over."""
    if mask is not None and reference.ndim > 2:
        reference, other = reference[mask], other[mask]
    p = torch.log_softmax(reference.reshape(-1, reference.shape[-1]).float(), dim=-1)
    q = torch.log_softmax(other.reshape(-1, other.shape[-1]).float(), dim=-1)
    return torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum").item(), len(p)


def divergence(
    model: Model,
    reference: Model,
    batches: Sequence[Batch],
    *,
    expected: Sequence[Tensor] | None = None,
    **options: Any,
) -> float:
    """Mean KL divergence of `model` from `reference`, nats per position that is text.

    `expected` are the reference's logits by batch, when they are at hand. `options` are those of `walk`.
    """
    total, positions = 0.0, 0
    dense = logits(reference, batches, **options) if expected is None else iter(expected)
    pairs = zip(dense, logits(model, batches, **options), strict=True)
    for batch, (wanted, found) in zip(batches, pairs, strict=True):
        mask = batch.get("decoder_attention_mask", batch.get("attention_mask"))
        added, count = kl(wanted, found, None if mask is None else mask.bool().to(wanted.device))
        total, positions = total + added, positions + count
    return total / max(positions, 1)
