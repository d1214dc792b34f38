"""Activations as in Minitron: how strongly a unit fires, L2 over a sequence, then the mean. https://arxiv.org/abs/2407.14679."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prune.errors import PruneError
from prune.model.groups import Group, within
from prune.model.model import Model
from prune.model.walk import Batch, Visit, walk
from prune.remove.gather import module_path
from prune.remove.stages import watching

KINDS = ("heads", "query_heads", "channels", "width")


def score_model(model: Model, groups: Sequence[Group], batches: Sequence[Batch], **options: Any) -> dict[str, Tensor]:
    """Each unit's activation: a head's output or a channel's, as its consumer reads it; float32 (units,) by group.

    A position of the width has those of the norms' outputs in all layers added up, each once, however many linears
    read it.
    `options` are those of the walk.
    """
    if any(piece.stacked for group in groups for piece in group.consumers if group.kind != "width"):
        raise PruneError("criterion 'activation' does not score the channels of experts; choices: wanda, flap")
    scores = {group.name: torch.zeros(group.units) for group in groups}
    sequences = sum(len(next(iter(batch.values()))) for batch in batches)
    for visit in walk(model, batches, **options):
        root = model.layer(visit.index)
        here = [own for group in groups if (own := within(group, visit.index, root)) is not None]
        consumers = {piece.name: module_path(piece, root) for g in here for piece in g.consumers}
        visit.outputs = []
        for b in range(len(batches)):
            with watching(visit.module, list(consumers.values())) as seen:
                visit.outputs.append(visit.forward(b))
            for group in here:
                once = {seen[consumers[piece.name]][0].data_ptr(): piece for piece in group.consumers}
                for piece in once.values():
                    inputs = seen[consumers[piece.name]][0].reshape(*visit.inputs[b].shape[:2], -1)
                    scores[group.name] += _fired(visit, b, inputs)[:, piece.index].square().sum(2).sqrt().sum(0)
    return {name: total / sequences for name, total in scores.items()}


def _fired(visit: Visit, batch: int, inputs: Tensor) -> Tensor:
    """L2 norm of each input over the text of each sequence, float32 (sequences, inputs)."""
    mask = visit.mask(batch)
    inputs = inputs.float()
    if mask is not None:
        inputs = inputs * mask[..., None]
    return inputs.square().sum(1).sqrt().cpu()
