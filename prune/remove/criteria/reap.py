"""REAP: what an expert adds for the tokens that go to it, gate x size of output. https://arxiv.org/abs/2510.13999."""

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


def score_model(model: Model, groups: Sequence[Group], batches: Sequence[Batch], **options: Any) -> dict[str, Tensor]:
    """The mean over an expert's tokens of gate x ||output||, 0 for one that gets none; float32 (experts,) per group.

    `options` are those of the walk.
    """

    def contribution(call: routing.Call) -> Tensor:
        return call.gates.float() * torch.linalg.vector_norm(call.finish(call.inner).float(), dim=-1)

    sums = routing.summed(model, groups, batches, contribution, **options)
    return {name: total / count.clamp_min(1) for name, (total, count) in sums.items()}
