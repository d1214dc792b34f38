"""Windows of text in the order that training meets them, known for every step without a state to keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from prune.errors import PruneError
from prune.recovery.objective import Batch

NAMES = ("input_ids", "attention_mask", "labels")


@dataclass(frozen=True)
class Windows:
    """Rows of `NAMES`, (rows, length) each."""

    rows: Batch

    def __len__(self) -> int:
        return len(self.rows["input_ids"])

    def batch(self, indices: Sequence[int]) -> Batch:
        """Some rows, with their numbers as `index`."""
        chosen = torch.tensor(list(indices), dtype=torch.long)
        return {name: rows[chosen] for name, rows in self.rows.items()} | {"index": chosen}


def windows(batches: Sequence[Batch]) -> Windows:
    """All rows of some batches of one length. PruneError where there are none, or of several lengths."""
    lengths = {batch["input_ids"].shape[1] for batch in batches}
    if len(lengths) != 1:
        said = f"of {', '.join(map(str, sorted(lengths)))} tokens together" if lengths else "of text at all"
        raise PruneError(f"windows {said}; training takes windows of one length", where="batches")
    return Windows({name: torch.cat([batch[name] for batch in batches]) for name in NAMES})


def order(count: int, first: int, number: int, seed: int) -> list[int]:
    """Which of `count` rows come at the places first to first + number: each once, then each again in another order."""
    return [_shuffled(count, place // count, seed)[place % count] for place in range(first, first + number)]


@lru_cache(maxsize=4)
def _shuffled(count: int, epoch: int, seed: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed((seed << 20) + epoch)
    return tuple(torch.randperm(count, generator=generator).tolist())


def step_batches(rows: Windows, step: int, *, batch_size: int, accumulate: int, seed: int) -> list[Batch]:
    """The batches of a step, counted from 0."""
    per_step = batch_size * accumulate
    found = order(len(rows), step * per_step, per_step, seed)
    return [rows.batch(found[start : start + batch_size]) for start in range(0, per_step, batch_size)]


def share(batch: Batch, rank: int, processes: int) -> Batch:
    """The rows of a batch that one of several processes takes; one that counts nowhere where there is none for it."""
    mine = {name: rows[rank::processes] for name, rows in batch.items()}
    if len(mine["input_ids"]):
        return mine
    empty = {name: rows[:1] for name, rows in batch.items()}
    mask = torch.zeros_like(empty["attention_mask"])
    mask[:, 0] = 1  # attention to nothing at all is not a number
    nothing = {"labels": torch.full_like(empty["labels"], -100), "compared": torch.zeros_like(mask)}
    return empty | {"attention_mask": mask} | nothing


def on(batch: Batch, device: str | torch.device) -> Batch:
    """The batch on a device, its row numbers left where they are."""
    return {name: rows if name == "index" else rows.to(device, non_blocking=True) for name, rows in batch.items()}


def tokens(batches: Sequence[Batch]) -> int:
    """Positions that go through the model."""
    return sum(batch["input_ids"].numel() for batch in batches)
