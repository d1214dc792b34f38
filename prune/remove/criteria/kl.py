"""KL: greedily, the layers whose removal moves the predictions least, as in SLEB. https://arxiv.org/abs/2402.09025."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prune.errors import PruneError
from prune.model.groups import Group
from prune.model.model import Model
from prune.model.walk import Batch, logits
from prune.remove.cut import cut
from prune.remove.divergence import divergence

KINDS = ("layers",)
HELD = 2**28  # logits kept in memory, at most; more are computed anew each time


def score_model(
    model: Model,
    groups: Sequence[Group],
    batches: Sequence[Batch],
    *,
    rounds: int = 1,
    **options: Any,
) -> dict[str, Tensor]:
    """The "layers" group's scores, float32 (layers,), nats per position.

    In each of `rounds` rounds the layer goes whose removal leaves the least KL divergence from the uncut model; those
    have negative scores, in their order. The others have the divergence that removing them next would leave. One round
    runs the model once for every layer that is there. `options` are those of the walk.
    """
    check(groups, rounds=rounds)
    (group,) = groups
    expected = _held(model, batches, options)
    kept = list(range(group.units))
    scores = torch.zeros(group.units)
    for turn in range(rounds):
        found = {
            layer: divergence(
                cut(model, {"layers": [other for other in kept if other != layer]}),
                model,
                batches,
                expected=expected,
                **options,
            )
            for layer in kept
        }
        for layer, value in found.items():
            scores[layer] = value
        least = min(found, key=found.__getitem__)
        kept.remove(least)
        scores[least] = turn - rounds
    return {group.name: scores}


def check(groups: Sequence[Group], *, rounds: int = 1, **_: Any) -> None:
    """PruneError for more rounds than there are layers to drop."""
    if not 1 <= rounds < groups[0].units:
        raise PruneError(f"rounds must be from 1 to {groups[0].units - 1}, not {rounds}")


def _held(model: Model, batches: Sequence[Batch], options: dict[str, Any]) -> list[Tensor] | None:
    """The uncut model's logits, when they are few enough to keep."""
    tokens = sum(batch["input_ids"].numel() if "input_ids" in batch else 0 for batch in batches)
    if not tokens or tokens * getattr(model.config, "vocab_size", HELD) > HELD:
        return None
    return list(logits(model, batches, **options))
