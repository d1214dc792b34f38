"""Taylor: how much the loss would change, to first order, if a unit were zero. https://arxiv.org/abs/1906.10771.

Gradients need the whole model on the device: the one criterion that does not walk.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prune.errors import PruneError
from prune.model.groups import Group, along
from prune.model.model import Model
from prune.model.save import load
from prune.model.walk import INPUTS, Batch

KINDS = ("heads", "query_heads", "channels", "layers")


def score_model(
    model: Model,
    groups: Sequence[Group],
    batches: Sequence[Batch],
    *,
    form: Literal["first", "fisher", "element"] = "first",
    **options: Any,
) -> dict[str, Tensor]:
    """Scores from the gradient of the mean next-token loss, float32 (units,) by group; labels are the tokens.

    "first": |sum of w x dL/dw| over the unit's slices. "element": the sum of |w x dL/dw|. "fisher": the square of the
    first, of each sequence's own loss, summed over sequences. `options` are those of a walk. Raises PruneError, with
    the memory it takes, when weights and gradients do not fit.
    """
    device, dtype = options.get("device", "cpu"), options.get("dtype")
    _check_room(model, torch.device(device), dtype)
    module = load(model, device=str(device), dtype=dtype)
    scores = {group.name: torch.zeros(group.units) for group in groups}
    steps = _each(batches) if form == "fisher" else iter([list(batches)])
    for part in steps:
        module.zero_grad()
        total = sum(int(_mask(batch)[:, 1:].sum()) for batch in part)
        for batch in part:
            (_loss(module, batch, device) / total).backward()
        for group in groups:
            change = _change(group, dict(module.named_parameters()), element=form == "element")
            scores[group.name] += change.square() if form == "fisher" else change.abs()
    return scores


def _each(batches: Sequence[Batch]) -> Iterator[list[Batch]]:
    """Every sequence as a batch of its own."""
    for batch in batches:
        for row in range(len(batch["input_ids"])):
            yield [{key: value[row : row + 1] for key, value in batch.items()}]


def _mask(batch: Batch) -> Tensor:
    """Positions that are text, bool (batch, length)."""
    found = batch.get("attention_mask")
    return torch.ones_like(batch["input_ids"], dtype=torch.bool) if found is None else found.bool()


def _loss(module: nn.Module, batch: Batch, device: str | torch.device) -> Tensor:
    """Summed next-token loss over tokens that are text and follow text."""
    inputs = {key: batch[key].to(device) for key in INPUTS if key in batch}
    logits = module(**inputs, use_cache=False).logits[:, :-1].float()
    mask = _mask(batch).to(device)
    counted = mask[:, 1:] & mask[:, :-1]
    return torch.nn.functional.cross_entropy(logits[counted], inputs["input_ids"][:, 1:][counted], reduction="sum")


def _change(group: Group, parameters: dict[str, nn.Parameter], *, element: bool) -> Tensor:
    """Sum of w x dL/dw over each unit's slices (of absolute values with `element`), float32 (units,)."""

    def products(name: str) -> Tensor:
        parameter = parameters[name]
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        found = parameter.detach().float() * gradient.float()
        return found.abs() if element else found

    if group.whole:
        return torch.stack(
            [sum((products(name).sum().cpu() for name in unit), torch.zeros(())) for unit in group.whole]
        )
    total = torch.zeros(group.units)
    for piece in group.slices:
        total += along(piece, products(piece.name))[piece.index].sum(1)
    return total


def _check_room(model: Model, device: torch.device, dtype: torch.dtype | None) -> None:
    """Weights and gradients must fit; activations come on top and are not counted."""
    size = sum(
        i.bytes if dtype is None else i.bytes // i.dtype.itemsize * dtype.itemsize for i in model.tensors.info.values()
    )
    needed, free = 2 * size, _free(device)
    if needed > free:
        raise PruneError(
            f"criterion 'taylor' needs gradients: {needed / 2**30:.1f} GiB for weights and gradients, and {device} has"
            f" {free / 2**30:.1f} GiB free; criteria that walk (wanda, obs) need one layer at a time"
        )


def _free(device: torch.device) -> float:
    """Bytes that are free on a device."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return float("inf")
