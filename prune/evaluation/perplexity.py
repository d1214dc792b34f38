"""Perplexity per token, by the walk: any size of model, one layer in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from prune.measure import token_loss
from prune.model.model import Model
from prune.model.walk import Batch, logits
from prune.progress import Progress


def perplexity(
    model: Model,
    batches: Sequence[Batch],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """exp of the mean negative log-likelihood over all labelled tokens.

    `batches` have input_ids, attention_mask and labels (batch, length); windows that overlap carry -100 where a token
    was counted before. Gives perplexity, loss (nats per token) and tokens counted.
    """
    total, tokens = 0.0, 0
    for batch, scores in zip(
        batches, logits(model, batches, device=device, dtype=dtype, progress=progress), strict=True
    ):
        loss, count = token_loss(scores, batch["labels"])
        total, tokens = total + loss, tokens + count
    mean = total / max(tokens, 1)
    return {"perplexity": math.exp(min(mean, 700.0)), "loss": mean, "tokens": tokens}
