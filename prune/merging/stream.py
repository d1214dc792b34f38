"""One merged tensor from its inputs: read, computed and put together block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from math import prod
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from prune.errors import PruneError
from prune.merging import chance
from prune.merging.block import Block, keywords
from prune.merging.blocks import SIZE, Blocks
from prune.model.tensors import Part, finite

HELD = 2**22  # entries
Reader = Callable[[], Part]  # opens one input's tensor for reading in parts
Watch = Callable[[Block], None]  # sees every block of a tensor once


@dataclass(frozen=True)
class Job:
    """One tensor of the merged model.

    inputs: what opens each input's tensor, without the base's.
    values: the method's parameters; those of each input are lists.
    dtype: what is computed in. With `compat` a block is the whole tensor, as it is for methods that look at rows.
    state: with `compat`, where the generator of masks stands before this tensor.
    """

    name: str
    shape: tuple[int, ...]
    method: ModuleType
    inputs: Sequence[Reader]
    base: Reader | None
    values: Mapping[str, Any]
    dtype: torch.dtype
    out: torch.dtype
    seed: int
    device: str = "cpu"
    compat: bool = False
    state: Tensor | None = None


def compute(job: Job, watch: Watch | None = None) -> Tensor:
    """The merged tensor, on the CPU. `watch` is shown each block once."""
    result, at = torch.empty(prod(job.shape), dtype=job.out), 0
    for piece in pieces(job, watch):
        result[at : at + len(piece)] = piece
        at += len(piece)
    return result.reshape(job.shape)


def pieces(job: Job, watch: Watch | None = None) -> Iterator[Tensor]:
    """The merged tensor laid out flat, block by block, on the CPU."""
    if not job.out.is_floating_point:
        yield _copied(job).reshape(-1)
        return
    blocks = _blocks(job)
    values = keywords(dict(job.values))
    facts = job.method.measure(blocks, **values) if hasattr(job.method, "measure") else None
    for block in blocks:
        if watch:
            watch(block)
        merged = job.method.merge(block, facts, **values).to(job.dtype)
        yield finite(job.name, merged.reshape(-1).to(device="cpu", dtype=job.out), "the merged model")


def _blocks(job: Job) -> Blocks:
    entries = prod(job.shape)
    whole = getattr(job.method, "whole", None)
    size = getattr(job.method, "BLOCK", None) or (entries if job.compat else SIZE)
    if whole is not None and whole(**keywords(dict(job.values))):
        size = entries
    small = hasattr(job.method, "measure") and entries <= HELD  # and gone over twice: read, and put in deltas, once
    parts = [_held(opened(), entries) if small else opened() for opened in job.inputs]
    base = (_held(job.base(), entries) if small else job.base()) if job.base else None
    in_turn = chance.InTurn(job.state) if job.state is not None else None
    remembered = chance.Remembered(job.seed, job.name)

    def read(part: Part, start: int, stop: int) -> Tensor:
        block = part(start, stop).to(device=job.device, dtype=job.dtype)
        return block.reshape(job.shape) if size >= entries else block

    def block(start: int, stop: int) -> Block:
        draw: Any = in_turn.mask if in_turn else partial(remembered.mask, start)
        return Block([read(part, start, stop) for part in parts], read(base, start, stop) if base else None, draw)

    return Blocks(entries, max(size, 1), cache(block) if small else block)


def _held(part: Part, entries: int) -> Part:
    """A tensor read whole, once."""
    whole = part(0, entries)
    return lambda start, stop: whole[start:stop]


def _copied(job: Job) -> Tensor:
    """A tensor of whole numbers, which all inputs must share: there is no mean of indices."""
    entries = prod(job.shape)
    first, *others = [opened()(0, entries) for opened in (*([job.base] if job.base else []), *job.inputs)]
    if not all(torch.equal(first, other) for other in others):
        raise PruneError(f"{job.name!r} holds whole numbers that differ between the models, which cannot be merged")
    return first.reshape(job.shape).clone()
