"""KL: greedily, the layers (or halves of layers) whose removal moves the predictions least, as in SLEB. https://arxiv.org/abs/2402.09025."""

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

KINDS = ("layers", "attention", "mlp")
HELD = 2**28  # logits kept in memory, at most; more are computed anew each time


def score_model(
    model: Model,
    groups: Sequence[Group],
    batches: Sequence[Batch],
    *,
    rounds: int = 1,
    **options: Any,
) -> dict[str, Tensor]:
    """Scores of the layers, attentions or MLPs, each kind for itself, float32 (units,), nats per position.

    In each of `rounds` rounds the unit goes whose removal leaves the least KL divergence from the uncut model; those
    have negative scores, in their order. The others have the divergence that removing them next would leave. One round
    runs the model once for every unit that is there. `options` are those of the walk.
    """
    check(groups, rounds=rounds)
    expected = _held(model, batches, options)
    return {group.name: _greedy(model, group, batches, rounds, expected, options) for group in groups}


def _greedy(
    model: Model,
    group: Group,
    batches: Sequence[Batch],
    rounds: int,
    expected: list[Tensor] | None,
    options: dict[str, Any],
) -> Tensor:
    kept = list(range(group.units))
    scores = torch.zeros(group.units)
    for turn in range(rounds):
        found = {
            unit: divergence(
                cut(model, {group.name: [other for other in kept if other != unit]}),
                model,
                batches,
                expected=expected,
                **options,
            )
            for unit in kept
        }
        for unit, value in found.items():
            scores[unit] = value
        least = min(found, key=found.__getitem__)
        kept.remove(least)
        scores[least] = turn - rounds
    return scores


def check(groups: Sequence[Group], *, rounds: int = 1, **_: Any) -> None:
    """PruneError for more rounds than there are layers to drop."""
    most = min(group.units for group in groups) - 1
    if not 1 <= rounds <= most:
        raise PruneError(f"rounds must be from 1 to {most}, not {rounds}")


def _held(model: Model, batches: Sequence[Batch], options: dict[str, Any]) -> list[Tensor] | None:
    """The uncut model's logits, when they are few enough to keep."""
    tokens = sum(batch["input_ids"].numel() if "input_ids" in batch else 0 for batch in batches)
    if not tokens or tokens * getattr(model.config, "vocab_size", HELD) > HELD:
        return None
    return list(logits(model, batches, **options))
