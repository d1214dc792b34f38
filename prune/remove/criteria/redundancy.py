"""Redundancy of layers: how little a layer, a run of layers or half of one turns the hidden state.

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
from prune.model.halves import left_out
from prune.model.model import Model
from prune.model.walk import Batch, walk

KINDS = ("layers", "attention", "mlp")


def score_model(
    model: Model,
    groups: Sequence[Group],
    batches: Sequence[Batch],
    *,
    distance: Literal["block_influence", "angular"] = "block_influence",
    run: int = 1,
    **options: Any,
) -> dict[str, Tensor]:
    """Scores of the layers, of the attentions or of the MLPs, float32 (units,) by group.

    Half of a layer is scored by how far leaving it out turns what leaves the layer. With `run` n > 1 a layer's score is
    the smallest distance over any n consecutive layers that it belongs to, so that the n lowest scores are the run to
    remove. `options` are those of the walk.
    """
    check(groups, run=run)
    halves = [group for group in groups if group.kind != "layers"]
    found = _of_halves(model, halves, batches, distance, options) if halves else {}
    return found | {g.name: _of_layers(model, g, batches, distance, run, options) for g in groups if g not in halves}


def _of_halves(
    model: Model, groups: Sequence[Group], batches: Sequence[Batch], distance: str, options: dict[str, Any]
) -> dict[str, Tensor]:
    scores = {group.name: torch.zeros(group.units) for group in groups}
    for visit in walk(model, batches, **options):
        whole = visit.run()
        for group in (group for group in groups if visit.index in group.places):
            with left_out(visit.module, [model.family.sublayers[group.kind]]):
                pairs = [(visit.forward(b), whole[b], visit.mask(b)) for b in range(len(batches))]
            turned = torch.cat([_turned(_cosines(*pair), distance) for pair in pairs])
            scores[group.name][group.places.index(visit.index)] = turned.mean().item()
    return scores


def _of_layers(
    model: Model, group: Group, batches: Sequence[Batch], distance: str, run: int, options: dict[str, Any]
) -> Tensor:
    entered: deque[list[Tensor]] = deque(maxlen=run)  # what entered the last `run` layers
    distances = []
    for visit in walk(model, batches, **options):
        entered.append(visit.inputs)
        left = visit.run()
        if len(entered) == run:
            cosines = torch.cat(
                [_cosines(a, b, visit.mask(i)) for i, (a, b) in enumerate(zip(entered[0], left, strict=True))]
            )
            distances.append(_turned(cosines, distance).mean().item())
    starts = [range(max(0, layer - run + 1), min(layer, len(distances) - 1) + 1) for layer in range(group.units)]
    return torch.tensor([min(distances[start] for start in own) for own in starts])


def _turned(cosines: Tensor, distance: str) -> Tensor:
    return 1 - cosines if distance == "block_influence" else torch.arccos(cosines.clamp(-1, 1)) / torch.pi


def check(groups: Sequence[Group], *, run: int = 1, **_: Any) -> None:
    """PruneError for a run that there are not enough layers for, or that is not of layers."""
    if run > 1 and any(group.kind != "layers" for group in groups):
        raise PruneError("only whole layers come in runs; leave run at 1")
    if not 1 <= run <= groups[0].units:
        raise PruneError(f"run must be from 1 to the {groups[0].units} layers there are, not {run}")


def _cosines(before: Tensor, after: Tensor, mask: Tensor | None) -> Tensor:
    """Cosine similarity at every position that is text, in float32."""
    found = torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
    return found.reshape(-1) if mask is None else found[mask]
