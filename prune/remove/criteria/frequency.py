"""Frequency: how often the router chooses an expert. Muzio et al., SEER-MoE, https://arxiv.org/abs/2404.05089."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prune.model.groups import Group
from prune.model.model import Model
from prune.model.walk import Batch
from prune.remove import routing

KINDS = ("experts",)


def score_model(
    model: Model, groups: Sequence[Group], batches: Sequence[Batch], *, soft: bool = False, **options: Any
) -> dict[str, Tensor]:
    """The share of tokens that go to each expert, float32 (experts,) per group.

    With `soft` a token counts as much as the gate it was given. `options` are those of the walk.
    """

    def weight(call: routing.Call) -> Tensor:
        return call.gates.float() if soft else torch.ones_like(call.gates, dtype=torch.float32)

    sums = routing.summed(model, groups, batches, weight, **options)
    return {name: total / count.sum().clamp_min(1) for name, (total, count) in sums.items()}
