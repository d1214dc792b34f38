"""Wanda, structured: weight times input norm, summed over a unit's inputs to its consumer. https://arxiv.org/abs/2306.11695."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from prune.model.groups import Group, along
from prune.remove.gather import Statistics

KINDS = ("heads", "query_heads", "channels", "width")
NEEDS = ("square",)


def score(
    group: Group,
    weights: Callable[[str], Tensor],
    statistics: Mapping[str, Statistics],
    *,
    norm: Literal["l1", "l2"] = "l1",
) -> Tensor:
    """Sum over a unit's consumer columns j of |W[:, j]| x rms(X_j); float32 (units,). A position of the width has
    columns in every linear that reads the stream.

    The published score has the norm over tokens, ||X_j||; the root mean square ranks the same and does not grow with
    the calibration data.
    """
    total = torch.zeros(group.units)
    for piece in group.consumers:
        weight = weights(piece.name).float()
        size = along(piece, weight.abs()) if norm == "l1" else along(piece, weight.square()).sqrt()
        column = size * statistics[piece.name]["square"].sqrt().cpu()
        total += column[piece.index].sum(1)
    return total
