"""Training without a teacher: what follows is predicted from text alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prune.model.model import Model
from prune.progress import Progress
from prune.recovery.objective import Batch
from prune.recovery.recover import Loss, Trained, recover
from prune.recovery.settings import Training


def train(
    model: Model,
    batches: Sequence[Batch],
    *,
    held_out: Sequence[Batch],
    training: Training,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Trains a model to predict the next token; what comes out is no worse on `held_out`.

    Batches, `folder` and errors are those of `distill`. SOLAR (https://arxiv.org/abs/2312.15166) trains so after depth
    up-scaling.
    """
    loss = Loss({"logits": 1.0})
    return recover(model, None, batches, held_out, loss=loss, training=training, folder=folder, progress=progress)
