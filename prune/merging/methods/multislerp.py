"""Multi-SLERP: the mean direction of several models, as long as they are on average."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prune.errors import PruneError
from prune.merging.block import Block, Each
from prune.merging.blocks import Blocks, gram

BASE = "optional"
LEAST, MOST = 1, None


def check(*, weight: Sequence[float], normalize_weights: bool, **_: Any) -> None:
    if normalize_weights and abs(sum(weight)) < 1e-8:
        raise PruneError("the weights sum to zero, so there is no mean", where="weight")


def measure(blocks: Blocks, *, weight: Sequence[float], normalize_weights: bool, eps: float) -> Tensor:
    """What each input is multiplied by. Everything lies in the span of the inputs, so inner products are enough.

    Barycentric interpolation in the tangent space at the weighted mean of directions: the tangents' weighted sum is
    zero there, so the mean itself is the answer, scaled to the weighted mean of the lengths.
    """
    weights = torch.tensor(weight, dtype=torch.float64)
    weights = weights / weights.sum() if normalize_weights else weights
    if len(weight) == 1:
        return torch.ones(1)
    products = gram(blocks, deltas=next(iter(blocks)).base is not None)
    lengths = products.diagonal().sqrt()
    mean = weights / (lengths + eps)  # as multiples of the inputs
    size = (mean @ products @ mean).clamp(min=0).sqrt()
    if size < eps:
        if len(weight) == 2:
            return weights.float()
        raise PruneError("the models' directions cancel each other out; take other weights", where="weight")
    return (mean / size * (lengths @ weights)).float()


def merge(block: Block, facts: Tensor, *, weight: Each, normalize_weights: bool = True, eps: float = 1e-8) -> Tensor:  # noqa: ARG001
    """The sum of the inputs (of their changes, where there is a base) times their factors."""
    inputs = block.tensors if block.base is None else block.deltas
    merged = sum(float(factor) * own for factor, own in zip(facts, inputs, strict=True))
    assert isinstance(merged, Tensor)
    return merged if block.base is None else block.base + merged
