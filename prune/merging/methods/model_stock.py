"""Model Stock: between the base and the models' average, by the angle between their changes.

Source: https://arxiv.org/abs/2403.19522
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prune.merging.block import Block
from prune.merging.blocks import Blocks, gram

BASE = "needed"
LEAST, MOST = 2, None
SMALLEST = 1e-6


def whole(*, filter_wise: bool, **_: Any) -> bool:
    return filter_wise


def measure(blocks: Blocks, *, filter_wise: bool, **_: Any) -> Tensor | None:
    """How far from the base to the average, over the whole tensor; with `filter_wise` each row is measured apart."""
    return None if filter_wise else _ratio(gram(blocks, deltas=True)).float()


def merge(block: Block, facts: Tensor | None, *, filter_wise: bool = False) -> Tensor:  # noqa: ARG001
    """t x average + (1 - t) x base, t = k cos / (1 + (k - 1) cos), cos being the mean over pairs of k models."""
    assert block.base is not None
    ratio = facts.to(block.base.device) if facts is not None else _of_rows(block)
    average = torch.stack([*block.tensors]).mean(dim=0)
    return ratio * average + (1 - ratio) * block.base


def _of_rows(block: Block) -> Tensor:
    assert block.base is not None
    rows = torch.stack([delta.reshape(-1, delta.shape[-1]) for delta in block.deltas])  # (models, rows, width)
    ratio = _ratio(torch.einsum("irw,jrw->rij", rows.double(), rows.double()))
    return ratio.to(block.base.dtype).reshape(*block.base.shape[:-1], 1)


def _ratio(products: Tensor) -> Tensor:
    """t from the inner products of the changes (..., k, k)."""
    count = products.shape[-1]
    norms = products.diagonal(dim1=-2, dim2=-1).sqrt()
    cosines = (products / (norms[..., :, None] * norms[..., None, :]).clamp(min=SMALLEST)).clamp(-1, 1)
    first, second = torch.triu_indices(count, count, offset=1)
    cosine = cosines[..., first, second].mean(dim=-1)
    divisor = 1 + (count - 1) * cosine
    single = divisor.abs() < SMALLEST  # changes that cancel out say nothing: the base stays
    return torch.where(
        single, torch.zeros_like(cosine), count * cosine / torch.where(single, torch.ones_like(divisor), divisor)
    )
