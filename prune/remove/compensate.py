"""Compensation: what a criterion's own method does to the linears it cuts, from the uncut stream in one walk.

FLAP gives the mean of what was removed to the bias (https://arxiv.org/abs/2312.11983); group OBS updates the weights
that are left (https://arxiv.org/abs/2302.04089). `refit` solves the same linears for the stream as the cut leaves it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from prune.model import slots
from prune.model.groups import Group, Slice, by_name, groups
from prune.model.model import Model
from prune.model.overlay import Changes, changed
from prune.model.walk import Batch, walk
from prune.remove import solve
from prune.remove.cut import cut
from prune.remove.gather import Statistics, gather, module_path

How = Literal["bias", "weights"]
NEEDS = {"bias": ("mean",), "weights": ("gram",)}
DAMPING = 1e-3


def compensate(
    model: Model,
    plan: Mapping[str, Sequence[int]],
    batches: Sequence[Batch],
    *,
    how: How,
    changes: Changes | None = None,
    record: dict[str, Any] | None = None,
    **options: Any,
) -> Model:
    """Cut `model` as `plan` says and make up for what goes, linear by linear; `options` are those of `walk`.

    "bias" adds W[:, removed] mean(X_removed) to the bias, where the stock config has one (else it does nothing there).
    "weights" adds W_removed H_removed,kept (H_kept,kept)^-1 to the weights that are left, with the inputs' Gram H.
    `record` is given the linears that had fewer tokens than unknowns, or whose damping had to be raised.
    """
    changes, record = Changes() if changes is None else changes, {} if record is None else record
    small = cut(model, plan)
    small = slots.opened(small) if how == "bias" else small
    layers = list(plan.get("layers", range(model.numbers["layers"])))
    kinds = sorted({name.rsplit(".", 1)[-1] for name in plan if name != "layers"})
    cuts = by_name(groups(model, kinds), [name for name in plan if name != "layers"])
    for visit in walk(model, batches, **options):
        here = [group for group in cuts.values() if group.layer == visit.index and len(plan[group.name]) < group.units]
        if visit.index not in layers or not here:
            continue
        root, new_root = model.layer(visit.index), small.layer(layers.index(visit.index))
        pieces = [piece for group in here for piece in group.consumers if not piece.stacked]
        consumers = list({piece.name: piece for piece in pieces}.values())  # heads and query heads share theirs
        found = gather(visit, root, consumers, NEEDS[how])
        weights = dict(visit.module.named_parameters(prefix=root))
        tokens = sum(map(visit.tokens, range(len(batches))))
        for piece in consumers:
            removed = _removed(piece, here, plan, weights[piece.name].shape[piece.dim])
            values, raised = _values(piece, weights[piece.name], found[piece.name], removed, how)
            name = f"{new_root}.{module_path(piece, root)}"
            _put(changes, small, name, values)
            if how == "weights" and tokens < int((~removed).sum()):
                record.setdefault("few_tokens", []).append(name)
            if raised:
                record.setdefault("raised", []).append(name)
    return changed(small, changes)


def _removed(piece: Slice, here: Sequence[Group], plan: Mapping[str, Sequence[int]], inputs: int) -> Tensor:
    """Inputs of a consumer that some group's removed units own: bool (inputs,)."""
    mask = torch.zeros(inputs, dtype=torch.bool)
    for group in here:
        units = sorted(set(range(group.units)) - set(plan[group.name]))
        for own in group.consumers:
            if own.name == piece.name:
                mask[own.index[units].reshape(-1)] = True
    return mask


def _values(
    piece: Slice, weight: Tensor, found: Statistics, removed: Tensor, how: How
) -> tuple[dict[str, Tensor], bool]:
    """What changes, as in a linear: "bias" to be added to (outputs,), or the new "weight"; and whether damping rose."""
    matrix = (weight if piece.dim == 1 else weight.T).detach().float()
    removed = removed.to(matrix.device)
    if how == "bias":
        return {"bias": matrix[:, removed] @ found["mean"][removed]}, False
    new, damping = updated(matrix, found["gram"], removed)
    return {"weight": new if piece.dim == 1 else new.T}, damping > DAMPING


def updated(weight: Tensor, gram: Tensor, removed: Tensor, damping: float = DAMPING) -> tuple[Tensor, float]:
    """The kept columns of a weight (outputs, inputs) after the optimal update for `removed` inputs, bool (inputs,).

    And the damping that it took, a multiple of the Gram's mean diagonal.
    """
    kind = torch.float32 if gram.device.type == "mps" else torch.float64
    gram, kept = gram.to(kind), ~removed
    lower, damping = solve.factor(gram[kept][:, kept], damping, solve.unit(gram))
    moved = torch.cholesky_solve(gram[kept][:, removed], lower)  # (kept, removed)
    return weight[:, kept] + (weight[:, removed].to(kind) @ moved.T).to(weight.dtype), damping


def _put(changes: Changes, small: Model, path: str, values: Mapping[str, Tensor]) -> None:
    for leaf, value in values.items():
        name = f"{path}.{leaf}"
        if name not in small.tensors.info:
            continue
        old = small.tensors.read(name)
        changes.put(name, (old.float() + value.cpu() if leaf == "bias" else value).to(old.dtype))
