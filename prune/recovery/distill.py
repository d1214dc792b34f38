"""Distillation: a student learns what its teacher says of text, and not only what the text says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from prune.model.model import Model
from prune.progress import Progress
from prune.recovery.cache import Cache
from prune.recovery.hidden import Hidden
from prune.recovery.logits import Logits
from prune.recovery.objective import Batch
from prune.recovery.recover import Loss, Trained, recover
from prune.recovery.settings import Training


def distill(
    student: Model,
    batches: Sequence[Batch],
    *,
    teacher: Model,
    held_out: Sequence[Batch],
    training: Training,
    loss: Mapping[str, float] | str = "logits",
    logits: Logits | None = None,
    hidden: Hidden | None = None,
    kept: Sequence[int] | None = None,
    cache: Cache | None = None,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Trains a student against a teacher of the same vocabulary; the model that comes out is no worse on `held_out`.

    `loss` is "logits", "hidden", or how much each counts, as in {"logits": 1, "hidden": 0.1}; `logits` and `hidden`
    say how they are compared, `kept` which of the teacher's layers the student still has. `batches` and `held_out` are
    windows of one length with input_ids, attention_mask and labels (batch, length), as `prune.batches` gives them.
    With `cache`, the teacher's likeliest logits are taken once to disk, a layer of it in memory at a time, and read
    from there. What a stopped run left in `folder` is gone on from. Raises PruneError for another vocabulary, a teacher
    that does not fit into memory, LoRA targets that match nothing, and a loss that is not a number.
    """
    shares = {loss: 1.0} if isinstance(loss, str) else dict(loss)
    judged = Loss(shares, logits or Logits(), hidden or Hidden(), kept)
    return recover(
        student,
        teacher,
        batches,
        held_out,
        loss=judged,
        training=training,
        cache=cache,
        folder=folder,
        progress=progress,
    )
