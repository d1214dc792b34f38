"""What is made small: the loss of a student on a batch, as one module, so that all of it runs inside its forward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prune.recovery.head import counted, head, last_hidden, predicted
from prune.recovery.hidden import hidden_loss, watching
from prune.recovery.logits import Logits, logit_loss
from prune.recovery.teacher import Signal

Batch = dict[str, Tensor]
PARTS = ("hard", "soft", "hidden")


@dataclass(frozen=True)
class Totals:
    """The tokens that a whole step's means are over, all processes and all its batches together."""

    predicted: int
    seen: int


def totals(batches: list[Batch]) -> Totals:
    """Of all batches of a step."""
    return Totals(
        max(sum(counted(batch["labels"]) for batch in batches), 1),
        max(sum(int(batch["attention_mask"].sum()) for batch in batches), 1),
    )


class Objective(nn.Module):
    """`shares` weighs the losses on logits and on hidden states; `pairs` are (student's, teacher's) layer paths."""

    def __init__(
        self,
        student: PreTrainedModel,
        *,
        logits: Logits,
        distance: str = "mse",
        shares: dict[str, float],
        pairs: list[tuple[str, str]],
        projections: nn.ModuleDict,
    ):
        super().__init__()
        self.student = student
        self.projections = projections
        self.logits = logits
        self.distance = distance
        self.shares = shares
        self.pairs = pairs

    def forward(self, batch: Batch, signal: Signal | None, totals: Totals, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        """The loss, and its parts (`PARTS`) without gradient: sums over this batch's tokens by the totals.

        `scale` multiplies the loss. Without a signal it is the cross-entropy alone, whatever the shares: what held-out
        text is measured by.
        """
        shares = {"logits": 1.0} if signal is None else self.shares
        paths = [own for own, _ in self.pairs] if "hidden" in shares else []
        with watching(self.student, paths) as seen:
            hidden = last_hidden(self.student, batch)
        parts = hidden.new_zeros(3, dtype=torch.float32)
        loss = hidden.new_zeros((), dtype=torch.float32)
        if "logits" in shares:
            states, labels = predicted(hidden, batch["labels"])
            soft = None if signal is None else signal.soft
            total = totals.predicted / scale
            found, *two = logit_loss(states, labels, head(self.student), soft, self.logits, total=total)
            loss = loss + shares["logits"] * found
            parts[:2] = torch.stack(two) / scale
        if paths and signal is not None:
            mask = batch.get("compared", batch["attention_mask"])  # of a batch that is there for its form alone
            found = self._hidden(seen, signal, mask, totals.seen)
            loss = loss + scale * shares["hidden"] * found
            parts[2] = found.detach()
        return loss, parts

    def _hidden(self, seen: dict[str, Tensor], signal: Signal, mask: Tensor, total: int) -> Tensor:
        """The mean over the layers that are compared."""
        found = []
        for number, (own, other) in enumerate(self.pairs):
            mine = self.projections[str(number)](seen[own]) if self.projections else seen[own]
            found.append(hidden_loss(mine, signal.hidden[other], mask, self.distance, total=total))
        return torch.stack(found).mean()
