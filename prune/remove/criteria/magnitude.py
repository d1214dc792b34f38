"""Magnitude: how large a unit's weights are (l1: sum of |w|; l2: sum of w^2). Han et al., https://arxiv.org/abs/1506.02626."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from prune.model.groups import Group, along
from prune.remove.gather import Statistics

KINDS = ("heads", "query_heads", "channels", "experts", "layers", "attention", "mlp", "width")
NEEDS: tuple[str, ...] = ()


def score(
    group: Group,
    weights: Callable[[str], Tensor],
    statistics: Mapping[str, Statistics],  # noqa: ARG001 - the criterion's form; magnitude looks at weights only
    *,
    norm: Literal["l1", "l2"] = "l2",
) -> Tensor:
    """The sum over all of a unit's slices; float32 (units,)."""
    if group.whole:
        return torch.stack(
            [torch.stack([_size(weights(name), norm).sum() for name in unit]).sum() for unit in group.whole]
        )
    total = torch.zeros(group.units)
    for piece in group.slices:
        total += along(piece, _size(weights(piece.name), norm))[piece.index].sum(1)
    return total


def _size(tensor: Tensor, norm: str) -> Tensor:
    tensor = tensor.float()
    return tensor.abs() if norm == "l1" else tensor.square()
