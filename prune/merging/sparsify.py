"""Which entries of a change stay: the largest, those between two sizes, or some drawn at random."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from prune.errors import PruneError
from prune.merging.block import Block
from prune.merging.blocks import Blocks

SMALL = 2**18  # entries that are simply sorted through
MARGIN = 0.02  # of the entries: how far a sample may be off before all are looked through
LEAST = 1e-7  # changes that are smaller altogether are not rescaled


def refuse_density(density: Iterable[float]) -> None:
    """PruneError for a share of entries that is none."""
    for share in density:
        if not 0 <= share <= 1:
            raise PruneError(f"density is the share of entries that stays, from 0 to 1, not {share:g}", where="density")


def trimmed(delta: Tensor, bound: float) -> Tensor:
    """A change with its entries smaller than `bound`, a float32, set to zero."""
    if delta.dtype != torch.float32:
        return delta.masked_fill(delta.abs() < bound, 0)
    return hardshrink(delta, float(np.nextafter(np.float32(bound), np.float32(-np.inf))))  # what is larger stays


def nth_largest(blocks: Blocks, ranks: Sequence[Sequence[int]]) -> list[list[float]]:
    """The size of each input's n-th largest change, for each n of `ranks[input]`, counted from 1; exact.

    A sample says between which sizes to look; one pass counts what is larger and gathers what lies between. Only
    where the sample misled are all entries looked through.
    """
    if blocks.entries <= SMALL:
        whole = [[] for _ in ranks]  # type: list[list[Tensor]]
        for block in blocks:
            for own, delta in zip(whole, block.deltas, strict=True):
                own.append(delta.abs().float().reshape(-1))
        return [[_nth(torch.cat(own), n) for n in wanted] for own, wanted in zip(whole, ranks, strict=True)]
    brackets = _brackets(blocks, ranks)
    found = _between(blocks, brackets, ranks)
    missed = [[value is None for value in own] for own in found]
    if any(any(own) for own in missed):
        whole_range = [
            [(0.0, float("inf")) if gone else pair for gone, pair in zip(own, pairs, strict=True)]
            for own, pairs in zip(missed, brackets, strict=True)
        ]
        found = _between(blocks, whole_range, ranks)
    return [[value for value in own if value is not None] for own in found]


def _nth(sizes: Tensor, n: int) -> float:
    return float(torch.kthvalue(sizes, len(sizes) - n + 1).values)


def _brackets(blocks: Blocks, ranks: Sequence[Sequence[int]]) -> list[list[tuple[float, float]]]:
    """Two sizes that the n-th largest lies between, by a sample."""
    drawn: list[list[Tensor]] = [[] for _ in ranks]
    for block in blocks.sample():
        for own, delta in zip(drawn, block.deltas, strict=True):
            own.append(delta.abs().float().reshape(-1))
    found = []
    for own, wanted in zip(drawn, ranks, strict=True):
        sizes = np.sort(torch.cat(own).cpu().numpy())[::-1]
        count, pairs = len(sizes), []
        for n in wanted:
            middle, slack = n / blocks.entries * count, MARGIN * count + 8
            high = float(sizes[int(middle - slack)]) if middle > slack else float("inf")
            low = float(sizes[int(middle + slack)]) if middle + slack < count else 0.0
            pairs.append((low, high))
        found.append(pairs)
    return found


def _between(
    blocks: Blocks, brackets: Sequence[Sequence[tuple[float, float]]], ranks: Sequence[Sequence[int]]
) -> list[list[float | None]]:
    """The n-th largest where it lies between two sizes, both included; None where it does not."""
    above = [[0 for _ in pairs] for pairs in brackets]
    inside: list[list[list[np.ndarray]]] = [[[] for _ in pairs] for pairs in brackets]
    for block in blocks:
        for number, delta in enumerate(block.deltas):
            if not brackets[number]:
                continue
            sizes = delta.abs().float().reshape(-1).cpu().numpy()  # numpy compares and picks several times faster
            for place, (low, high) in enumerate(brackets[number]):
                larger = sizes > np.float32(high)
                above[number][place] += int(np.count_nonzero(larger))
                inside[number][place].append(sizes[(sizes >= np.float32(low)) & ~larger])
    found: list[list[float | None]] = []
    for number, pieces in enumerate(inside):
        own: list[float | None] = []
        for place, wanted in enumerate(ranks[number]):
            gathered, n = torch.from_numpy(np.concatenate(pieces[place])), wanted - above[number][place]
            own.append(_nth(gathered, n) if 1 <= n <= len(gathered) else None)
        found.append(own)
    return found


Sparse = Callable[[Block, Sequence[Tensor]], Sequence[Tensor]]


def rescaling(blocks: Blocks, sparse: Sparse) -> list[Tensor]:
    """For each input, what its sparse change is multiplied by to be as large (in L1) as the whole one.

    `sparse` is handed a block and the sizes of its changes, and gives those sizes with zeros for what goes.
    """
    before: list[Tensor] = []
    after: list[Tensor] = []
    for block in blocks:
        sizes = [delta.abs() for delta in block.deltas]
        own = [size.sum() for size in sizes]
        left = [size.sum() for size in sparse(block, sizes)]
        before = [a + b for a, b in zip(before, own, strict=True)] if before else own
        after = [a + b for a, b in zip(after, left, strict=True)] if after else left
    return [
        whole / part if whole >= LEAST and part >= LEAST else torch.ones_like(whole)
        for whole, part in zip(before, after, strict=True)
    ]


def scaled(deltas: Sequence[Tensor], scales: Sequence[Tensor] | None) -> Tensor:
    """Sparse changes put together, (inputs, ...), rescaled where there are scales."""
    found = torch.stack([*deltas])
    for own, scale in zip(found, scales or (), strict=False):
        own *= scale
    return found
