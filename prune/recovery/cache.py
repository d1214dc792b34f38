"""A teacher's logits on disk: the likeliest ids of every token and the mass of the rest, taken once, layer by layer.

Whoever trains from them needs no teacher in memory, and taking them needs one layer of it at a time. A folder holds
any number of them, each under the digest of what it was made from: teacher, windows, temperature and how many ids.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from prune import files
from prune.errors import PruneError
from prune.model.model import Model
from prune.model.walk import logits as walked_logits
from prune.progress import Progress
from prune.recovery.logits import Sparse, with_rest
from prune.recovery.objective import Batch
from prune.recovery.teacher import Signal
from prune.recovery.windows import Windows

INDEX = "logits.json"
UNFINISHED = ".tmp"
LOOK = 1.0  # seconds between two looks at what another process takes
SHARD = 2**28  # bytes, of a file and of the hidden states that the walk holds


@dataclass(frozen=True)
class Cache:
    """Where logits are kept, and how many of each token's ids."""

    folder: Path
    top: int = 64


@dataclass(frozen=True)
class Kept:
    """Logits that were taken: rows [n * size, ...) are in the n-th file."""

    folder: Path
    shared: int
    size: int
    names: tuple[str, ...]

    @cached_property
    def _files(self) -> list[Any]:
        return [safe_open(self.folder / name, "pt") for name in self.names]

    def row(self, index: int) -> tuple[Tensor, Tensor]:
        """ids (length - 1, k) int32 and log_p (length - 1, k + 1) float32 of a window."""
        file, place = self._files[index // self.size], index % self.size
        return file.get_slice("ids")[place], file.get_slice("log_p")[place]


def ask(kept: Kept, batch: Batch) -> Signal:
    """What the teacher said of a batch, whose windows are known by their `index`."""
    rows = [kept.row(int(index)) for index in batch["index"]]
    counted = (batch["labels"][:, 1:] != -100).cpu()
    ids, log_p = (torch.stack(part)[counted].to(batch["labels"].device) for part in zip(*rows, strict=True))
    return Signal(Sparse(ids, log_p, kept.shared))


def key(teacher: Model, rows: Windows, *, top: int, temperature: float, shared: int, dtype: torch.dtype | None) -> str:
    """The digest of all that the logits depend on."""
    ids = hashlib.sha256(rows.rows["input_ids"].contiguous().numpy().tobytes()).hexdigest()
    known = [dict(teacher.fingerprint()), ids, list(rows.rows["input_ids"].shape), top, temperature, shared, str(dtype)]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def take(
    teacher: Model,
    rows: Windows,
    cache: Cache,
    *,
    temperature: float,
    shared: int,
    device: str,
    dtype: torch.dtype | None,
    batch_size: int,
    first: bool = True,
    progress: Progress,
) -> Kept:
    """The teacher's logits on these windows: those that were taken before, or taken now and kept.

    Of several processes the `first` takes them, and the others wait until they lie on the disk that all see.
    """
    check(cache, shared)
    found = key(teacher, rows, top=cache.top, temperature=temperature, shared=shared, dtype=dtype)
    folder = cache.folder / found[:16]
    kept = recall(folder, found)
    while kept is None and not first:
        time.sleep(LOOK)
        kept = recall(folder, found)
    if kept is not None:
        progress.say(f"the teacher's logits are in {folder} already")
        return kept
    length, width = rows.rows["input_ids"].shape[1], teacher.numbers["width"]
    size = max(SHARD // max(8 * length * (cache.top + 1), 8 * length * width), 1)
    files.make(folder)
    names: dict[str, str] = {}
    with progress.track("teacher's logits", len(rows)) as advance:
        for number, start in enumerate(range(0, len(rows), size)):
            part = range(start, min(start + size, len(rows)))
            batches = [
                rows.batch(part[at : at + batch_size]) | {"labels": torch.tensor(0)}
                for at in range(0, len(part), batch_size)
            ]
            told = [
                _likeliest(scores[:, :-1, :shared], cache.top, temperature)
                for scores in _logits(teacher, batches, device, dtype)
            ]
            ids, log_p = (torch.cat(pieces) for pieces in zip(*told, strict=True))
            name = f"rows-{number:05}.safetensors"
            names[name] = _write(folder / name, {"ids": ids, "log_p": log_p})
            advance(len(part))
    index = {"key": found, "top": cache.top, "temperature": temperature, "shared": shared, "size": size, "files": names}
    beside = _beside(folder / INDEX)
    files.write_json(beside, index)
    beside.rename(folder / INDEX)
    return Kept(folder, shared, size, tuple(names))


def check(cache: Cache, shared: int) -> None:
    """PruneError when there are not more ids than are to be kept."""
    if cache.top >= shared:
        raise PruneError(f"top is {cache.top}; choices: 1 to {shared - 1}, one below the vocabulary", where="cache")


def recall(folder: Path, found: str) -> Kept | None:
    """Logits that were taken before, when they are whole and made from the same."""
    if not (folder / INDEX).is_file():
        return None
    index = files.read_json(folder / INDEX)
    others = {name for name in files.names(folder) if name.endswith(UNFINISHED)}
    if index.get("key") != found or files.compare(folder, index["files"], ignore={INDEX, *others}):
        return None
    return Kept(folder, index["shared"], index["size"], tuple(sorted(index["files"])))


def _logits(teacher: Model, batches: list[Batch], device: str, dtype: torch.dtype | None) -> Iterator[Tensor]:
    return walked_logits(teacher, batches, device=device, dtype=dtype)


def _likeliest(scores: Tensor, top: int, temperature: float) -> tuple[Tensor, Tensor]:
    """ids (rows, length, k) and log probabilities (rows, length, k + 1) of logits (rows, length, vocabulary)."""
    ids, log_p = [], []
    for row in scores.float():
        log_q = torch.log_softmax(row / temperature, -1)
        best = log_q.topk(top).indices.sort(-1).values
        ids.append(best.int().cpu())
        log_p.append(with_rest(log_q, best).cpu())
    return torch.stack(ids), torch.stack(log_p)


def _write(path: Path, tensors: dict[str, Tensor]) -> str:
    """Whole or not at all; gives the file's hash."""
    beside = _beside(path)
    save_file(tensors, beside)
    digest = files.sha256(beside)
    beside.rename(path)
    return digest


def _beside(path: Path) -> Path:
    """A name that no other run takes: several may write the same logits at once."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
