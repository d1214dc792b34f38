"""What several rooms need and none owns: the loss of tokens under logits."""

from __future__ import annotations

import torch
from torch import Tensor


def token_loss(logits: Tensor, labels: Tensor) -> tuple[float, int]:
    """Summed negative log-likelihood in nats, and how many tokens it was summed over.

    `logits` (batch, length, vocabulary) predict the next token of `labels` (batch, length); -100 is not counted.
    """
    targets = labels[:, 1:].to(logits.device)
    counted = targets != -100
    chosen = logits[:, :-1][counted].float()  # (tokens, vocabulary)
    loss = torch.nn.functional.cross_entropy(chosen, targets[counted], reduction="sum")
    return loss.item(), int(counted.sum())
