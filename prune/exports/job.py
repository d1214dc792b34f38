"""What a format is handed: the opened model, the folder to fill, and what it may look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from prune.model.model import Model
from prune.model.walk import Batch
from prune.progress import Progress


@dataclass(frozen=True)
class Job:
    """One export. `folder` is there and empty; it is staged, so that what fails leaves nothing.

    `calibration` gives the recipe's calibration text as token batches, None where the recipe has none. `seed` is of
    everything random.
    """

    model: Model
    folder: Path
    progress: Progress = field(default_factory=lambda: Progress(quiet=True))
    calibration: Callable[[], list[Batch]] | None = None
    seed: int = 0
