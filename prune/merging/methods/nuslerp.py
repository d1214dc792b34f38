"""NuSLERP: slerp of two models by their weights; with a base, of what they add to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prune.errors import PruneError
from prune.merging.block import Block, Each
from prune.merging.blocks import Blocks, gram

BASE = "optional"
LEAST, MOST = 2, 2
ZERO = 1e-7
PARALLEL = 1e-16  # squared sine of an angle that is taken for none


def whole(*, nuslerp_flatten: bool, **_: Any) -> bool:
    return not nuslerp_flatten


def check(*, weight: Sequence[float], **_: Any) -> None:
    if abs(sum(weight)) < 1e-6:
        raise PruneError("the weights sum to zero, so they say no place between the two models", where="weight")


def measure(blocks: Blocks, *, weight: Sequence[float], nuslerp_flatten: bool, **_: Any) -> Tensor | None:
    """What the two tensors are multiplied by (2,), where a tensor is taken as one vector."""
    if not nuslerp_flatten:
        return None
    products = gram(blocks, deltas=next(iter(blocks)).base is not None)
    norms = products.diagonal().sqrt().clamp(min=ZERO)
    return _factors(products[0, 1] / (norms[0] * norms[1]), weight[1] / sum(weight)).float()


def merge(
    block: Block,
    facts: Tensor | None,
    *,
    weight: Each,
    nuslerp_row_wise: bool = False,
    nuslerp_flatten: bool = True,  # noqa: ARG001
) -> Tensor:
    """Along the arc from the first to the second; not flattened, for each vector along the last dim (the first with
    `nuslerp_row_wise`) by itself."""
    first, second = block.deltas if block.base is not None else block.tensors
    if facts is not None:
        factors = facts.to(first.device)
    else:
        dim = 0 if nuslerp_row_wise else -1
        one, other = (
            own / torch.linalg.vector_norm(own, dim=dim, keepdim=True).clamp(min=ZERO) for own in (first, second)
        )
        factors = _factors((one * other).sum(dim=dim, keepdim=True), weight[1] / sum(weight))
    merged = factors[0] * first + factors[1] * second
    return merged if block.base is None else block.base + merged


def _factors(cosine: Tensor, t: float) -> Tensor:
    """sin((1-t)w)/sin(w) and sin(tw)/sin(w), stacked; 1-t and t where the two are parallel."""
    cosine = cosine.clamp(-1, 1)
    parallel = 1 - cosine.square() <= PARALLEL
    angle = torch.acos(torch.where(parallel, torch.zeros_like(cosine), cosine))
    arc = torch.stack([torch.sin((1 - t) * angle), torch.sin(t * angle)]) / torch.sin(angle)
    line = torch.stack([torch.full_like(cosine, 1 - t), torch.full_like(cosine, t)])
    return torch.where(parallel, line, arc)
