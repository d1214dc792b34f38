"""Merging dropped experts, each into the nearest that stays. Li et al., MC-SMoE, https://arxiv.org/abs/2310.01334."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from prune.model.groups import Group, by_name, groups
from prune.model.model import Model
from prune.model.tensors import Tensors


def absorb(model: Model, plan: Mapping[str, Sequence[int]], scores: Mapping[str, Tensor]) -> Model:
    """The model with every expert that `plan` drops averaged into the kept one whose router row is most like its own.

    Weights of the mean are the `scores`, per group float32 (experts,), which should say how much each expert is used
    ("frequency"). Router rows stay. Nothing has another shape, so the plan is cut afterwards: `cut(absorb(...), plan)`.
    """
    names = [name for name in plan if name.endswith(".experts")]
    found = by_name(groups(model, "experts"), names) if names else {}
    shares: dict[str, Tensor] = {}
    for name, group in found.items():
        if len(plan[name]) == group.units:
            continue
        share = _shares(model, group, list(plan[name]), scores[name].float())
        shares |= {piece.name: share for piece in group.slices if piece.role == "follower"}

    def read(name: str) -> Tensor:
        tensor = model.tensors.read(name)
        if name not in shares:
            return tensor
        return torch.einsum("ef,f...->e...", shares[name], tensor.float()).to(tensor.dtype)

    return replace(model, tensors=Tensors(model.tensors.info, read))


def _shares(model: Model, group: Group, kept: list[int], scores: Tensor) -> Tensor:
    """How much of each expert goes into each: (experts, experts), rows sum to one."""
    router = next(piece.name for piece in group.slices if piece.role == "router")
    rows = torch.nn.functional.normalize(model.tensors.read(router).float(), dim=1)  # (experts, width)
    share = torch.eye(group.units)
    for dropped in sorted(set(range(group.units)) - set(kept)):
        nearest = kept[int((rows[kept] @ rows[dropped]).argmax())]
        share[nearest, dropped] = 1.0
    weighted = share * scores.clamp_min(torch.finfo(torch.float32).tiny)
    return weighted / weighted.sum(1, keepdim=True)
