"""The softmax of logits, and the way back through it."""

from __future__ import annotations

import torch
from torch import Tensor


def gradient(weighed: Tensor, q: Tensor) -> Tensor:
    """The gradient with respect to logits (tokens, outcomes) from w = q * d/dq; changes `q` in place."""
    return weighed - q.mul_(weighed.sum(-1, keepdim=True))


def log_softmax(logits: Tensor, temperature: float) -> Tensor:
    """Of logits / temperature; changes `logits` in place."""
    return torch.log_softmax(logits if temperature == 1 else logits.div_(temperature), -1)
