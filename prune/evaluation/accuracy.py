"""Accuracy and loss on labelled examples, by the walk: classes, tags, masked words, target texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from prune.data import IGNORED
from prune.errors import PruneError
from prune.model.model import Model
from prune.model.walk import Batch, logits
from prune.progress import Progress


def accuracy(
    model: Model,
    batches: Sequence[Batch],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The share of labels that are the model's first choice, their mean cross-entropy in nats, and how many there are.

    `batches` have what the model takes, and labels as `prune.examples` gives them: int64, one for each place where the
    model says something, -100 where nothing is asked.
    """
    right, total, count = 0, 0.0, 0
    for batch, scores in zip(
        batches, logits(model, batches, device=device, dtype=dtype, progress=progress), strict=True
    ):
        labels = batch["labels"].to(scores.device)
        asked = labels != IGNORED
        chosen, wanted = scores[asked].float(), labels[asked]  # (labels, classes), (labels,)
        right += int((chosen.argmax(-1) == wanted).sum())
        total += torch.nn.functional.cross_entropy(chosen, wanted, reduction="sum").item()
        count += len(wanted)
    if not count:
        raise PruneError("the examples ask nothing: no label was found")
    return {"accuracy": right / count, "loss": total / count, "labels": count}
