"""Karcher mean: the point on the sphere from which all models are nearest.

Source: https://en.wikipedia.org/wiki/Karcher_mean
"""

from __future__ import annotations

import torch
from torch import Tensor

from prune.merging.block import Block
from prune.merging.blocks import Blocks, gram

BASE = "input"
LEAST, MOST = 1, None


def measure(blocks: Blocks, *, max_iter: int, tol: float) -> Tensor:
    """What each input is multiplied by. Every iterate is a sum of the inputs, so inner products are enough."""
    products = gram(blocks, deltas=False)
    lengths = products.diagonal().sqrt()
    used = lengths > tol
    if len(lengths) == 1 or not used.any():
        return torch.ones(1) if len(lengths) == 1 else torch.zeros(len(lengths))
    units = torch.where(used, 1 / lengths.clamp(min=tol), torch.zeros_like(lengths)).diag()  # (inputs, inputs): rows
    share = used.double() / used.sum()
    mean = _unit(share @ units, products, tol)
    mean = units[used][0] if mean is None else mean
    for _ in range(max_iter):
        cosines = (units @ products @ mean).clamp(-1, 1)
        angles = torch.acos(cosines)
        far = used & (angles >= tol)
        pull = torch.where(far, share * angles / torch.sin(angles).clamp(min=1e-30), torch.zeros_like(angles))
        tangent = pull @ (units - cosines[:, None] * mean)
        size = (tangent @ products @ tangent).clamp(min=0).sqrt()
        if size < tol:
            break
        moved = torch.cos(size) * mean + torch.sin(size) * tangent / size
        mean = _unit(moved, products, tol)
        if mean is None:
            mean = moved
    return (lengths.mean() * mean).float()


def _unit(vector: Tensor, products: Tensor, tol: float) -> Tensor | None:
    size = (vector @ products @ vector).clamp(min=0).sqrt()
    return None if size < tol else vector / size


def merge(block: Block, facts: Tensor, *, max_iter: int = 10, tol: float = 1e-5) -> Tensor:  # noqa: ARG001
    """The mean direction, as long as the models are on average."""
    merged = sum(float(factor) * own for factor, own in zip(facts, block.tensors, strict=True))
    assert isinstance(merged, Tensor)
    return merged
