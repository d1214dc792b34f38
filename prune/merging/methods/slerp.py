"""Slerp: the way from the base to the other model along the arc between them.

Source: https://en.wikipedia.org/wiki/Slerp
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prune.merging.block import Block
from prune.merging.blocks import Blocks

BASE = "needed"
LEAST, MOST = 1, 1
BLOCK = 2**20  # the angle's sums are made of parts of this many entries
PARALLEL = 0.9995  # cosine from which on the arc is taken for a line
ZERO = 1e-8  # norms up to it are taken for zero


def measure(blocks: Blocks, *, t: float, **_: Any) -> tuple[Tensor, Tensor]:
    """What base and other are multiplied by: sin((1-t)w)/sin(w) and sin(tw)/sin(w), w being the angle between them."""
    norms = [[torch.linalg.vector_norm(own, dim=1, keepdim=True) for own in _rows(block)] for block in blocks]
    first, second = (torch.linalg.vector_norm(torch.stack([*own]), dim=0) for own in zip(*norms, strict=True))
    one = torch.ones_like(first)
    first, second = torch.where(first > ZERO, first, one), torch.where(second > ZERO, second, one)
    dots = [((a / first) * (b / second)).sum(dim=1, keepdim=True) for a, b in map(_rows, blocks)]
    cosine = torch.stack(dots).sum(dim=0).clamp(-1, 1).reshape(())
    step = torch.tensor(t, dtype=cosine.dtype, device=cosine.device)
    if cosine.abs() > PARALLEL:
        return 1 - step, step
    angle = torch.acos(cosine)
    return torch.sin((1 - step) * angle) / torch.sin(angle), torch.sin(step * angle) / torch.sin(angle)


def merge(block: Block, facts: tuple[Tensor, Tensor], *, t: float) -> Tensor:  # noqa: ARG001
    """The weighted sum of the tensors as they are, not of their directions: t = 0 is the base, t = 1 the other."""
    base, other = _pair(block)
    return facts[0] * base + facts[1] * other


def _rows(block: Block) -> tuple[Tensor, Tensor]:
    """Base and other as single rows (1, entries): sums over one are rounded as mergekit's are."""
    base, other = _pair(block)
    return base.reshape(1, -1), other.reshape(1, -1)


def _pair(block: Block) -> tuple[Tensor, Tensor]:
    assert block.base is not None
    wide = torch.promote_types(block.base.dtype, torch.float32)
    return block.base.to(wide), block.tensors[0].to(wide)
