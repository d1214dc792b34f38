"""FLAP: how much a unit's inputs to its consumer fluctuate, times their weights. https://arxiv.org/abs/2312.11983."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from prune.model.groups import Group, along
from prune.remove.gather import Statistics

KINDS = ("heads", "query_heads", "channels")
NEEDS = ("mean", "square")
COMPENSATES = "bias"  # what was removed goes on giving its mean, where the stock config has a bias for it


def score(
    group: Group,
    weights: Callable[[str], Tensor],
    statistics: Mapping[str, Statistics],
) -> Tensor:
    """Sum over a unit's consumer columns j of Var(X_j) x |W[:, j]|^2; float32 (units,).

    For a ranking across layers the paper standardises scores by layer: `scope: global, normalize: standard`.
    """
    total = torch.zeros(group.units)
    for piece in group.consumers:
        found = statistics[piece.name]
        variance = (found["square"] - found["mean"].square()).clamp_min(0).cpu()
        column = along(piece, weights(piece.name).float().square()) * variance
        total += column[piece.index].sum(1)
    return total
