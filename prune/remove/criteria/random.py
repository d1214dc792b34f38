"""Random, seeded: the baseline that every criterion must beat."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from prune.model.groups import Group
from prune.remove.gather import Statistics

KINDS = ("heads", "query_heads", "channels", "experts", "layers", "attention", "mlp", "width")
NEEDS: tuple[str, ...] = ()


def score(
    group: Group,
    weights: Callable[[str], Tensor],  # noqa: ARG001 - the criterion's form; chance looks at nothing
    statistics: Mapping[str, Statistics],  # noqa: ARG001
    *,
    seed: int = 0,
) -> Tensor:
    """Uniform in [0, 1), a function of the seed and the group's name alone; float32 (units,)."""
    digest = hashlib.sha256(f"{seed}:{group.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.rand(group.units, generator=generator)
