"""Redundancy of layers: how little a layer, or a run of layers, turns the hidden state.

Block influence, 1 - mean cos(h_in, h_out) (ShortGPT, https://arxiv.org/abs/2403.03853), and angular distance over a
run of consecutive layers, mean arccos(cos) / pi (Gromov et al., https://arxiv.org/abs/2403.17887).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from prune.errors import PruneError
from prune.model.groups import Group
from prune.model.model import Model
from prune.model.walk import Batch, walk

KINDS = ("layers",)


def score_model(
    model: Model,
    groups: Sequence[Group],
    batches: Sequence[Batch],
    *,
    distance: Literal["block_influence", "angular"] = "block_influence",
    run: int = 1,
    **options: Any,
) -> dict[str, Tensor]:
    """The "layers" group's scores, float32 (layers,).

    With `run` n > 1 a layer's score is the smallest distance over any n consecutive layers that it belongs to, so
    that the n lowest scores are the run to remove. `options` are those of the walk.
    """
    check(groups, run=run)
    (group,) = groups
    entered: deque[list[Tensor]] = deque(maxlen=run)  # what entered the last `run` layers
    distances = []
    for visit in walk(model, batches, **options):
        entered.append(visit.inputs)
        left = visit.run()
        if len(entered) == run:
            cosines = torch.cat(
                [_cosines(a, b, visit.mask(i)) for i, (a, b) in enumerate(zip(entered[0], left, strict=True))]
            )
            turned = 1 - cosines if distance == "block_influence" else torch.arccos(cosines.clamp(-1, 1)) / torch.pi
            distances.append(turned.mean().item())
    starts = [range(max(0, layer - run + 1), min(layer, len(distances) - 1) + 1) for layer in range(group.units)]
    return {group.name: torch.tensor([min(distances[start] for start in own) for own in starts])}


def check(groups: Sequence[Group], *, run: int = 1, **_: Any) -> None:
    """PruneError for a run that there are not enough layers for."""
    if not 1 <= run <= groups[0].units:
        raise PruneError(f"run must be from 1 to the {groups[0].units} layers there are, not {run}")


def _cosines(before: Tensor, after: Tensor, mask: Tensor | None) -> Tensor:
    """Cosine similarity at every position that is text, in float32."""
    found = torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
    return found.reshape(-1) if mask is None else found[mask]
