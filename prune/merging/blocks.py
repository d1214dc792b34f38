"""One tensor of every input, block by block: a pass over it holds a few blocks, whatever the tensor's size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from prune.merging.block import Block

SIZE = 2**18  # entries; a few of them fit a core's cache
PIECES, PIECE = 64, 512  # of a sample


@dataclass(frozen=True)
class Blocks:
    """Passes over the blocks of one tensor. `block(start, stop)` reads one; a whole tensor is one of its shape."""

    entries: int
    size: int
    block: Callable[[int, int], Block]

    def spans(self) -> Iterator[tuple[int, int]]:
        for start in range(0, self.entries, self.size):
            yield start, min(start + self.size, self.entries)

    def __iter__(self) -> Iterator[Block]:
        for start, stop in self.spans():
            yield self.block(start, stop)

    def sample(self) -> Iterator[Block]:
        """Small pieces from all over the tensor; of a tensor that is one block, that block."""
        if self.size >= self.entries:
            yield from self
            return
        step = (self.entries - PIECE) / (PIECES - 1)
        for piece in range(PIECES):
            start = int(piece * step)
            yield self.block(start, start + PIECE)


def gram(blocks: Blocks, *, deltas: bool) -> torch.Tensor:
    """The inner products of the inputs (of their changes with `deltas`) with each other: float64 (inputs, inputs)."""
    found = torch.zeros((), dtype=torch.float64)
    for block in blocks:
        rows = torch.stack([tensor.reshape(-1).float() for tensor in (block.deltas if deltas else block.tensors)])
        found = found + (rows @ rows.T).double().cpu()
    return found
