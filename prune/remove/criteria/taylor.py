"""Taylor: how much the loss would change, to first order, if a unit were zero. https://arxiv.org/abs/1906.10771.

Gradients need the whole model on the device: the one criterion that does not walk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prune.data import IGNORED
from prune.errors import PruneError
from prune.labels import task
from prune.model.groups import Group, along
from prune.model.memory import available
from prune.model.model import Model
from prune.model.save import load
from prune.model.walk import INPUTS, Batch, walk

KINDS = ("heads", "query_heads", "channels", "layers", "attention", "mlp", "width")


def score_model(
    model: Model,
    groups: Sequence[Group],
    batches: Sequence[Batch],
    *,
    form: Literal["first", "fisher", "element"] = "first",
    **options: Any,
) -> dict[str, Tensor]:
    """Scores from the gradient of the mean loss, float32 (units,) by group.

    The loss is that of the next token, whose labels are the tokens; a classifier's and a masked word's is the
    cross-entropy of the labels in the batches (`prune.examples`).

    "first": |sum of w x dL/dw| over the unit's slices. "element": the sum of |w x dL/dw|. "fisher": the square of the
    first, of each sequence's own loss, summed over sequences. `options` are those of a walk. Raises PruneError, with
    the memory it takes, when weights and gradients do not fit, and naming the layer when loss or gradients are not
    finite.
    """
    device, dtype = options.get("device", "cpu"), options.get("dtype")
    _check_room(model, torch.device(device), dtype)
    module = load(model, device=str(device), dtype=dtype)
    scores = {group.name: torch.zeros(group.units) for group in groups}
    steps = _each(batches) if form == "fisher" else iter([list(batches)])
    for part in steps:
        module.zero_grad()
        total = sum(int(_asked(model, batch)[0].sum()) for batch in part)
        for batch in part:
            loss = _loss(model, module, batch, device) / max(total, 1)
            if not bool(torch.isfinite(loss)):
                raise _not_finite(model, batch, options)
            loss.backward()
        for group in groups:
            change = _change(group, dict(module.named_parameters()), element=form == "element")
            scores[group.name] += change.square() if form == "fisher" else change.abs()
            if not bool(torch.isfinite(scores[group.name]).all()):
                raise _steep(group, module)
    return scores


def _not_finite(model: Model, batch: Batch, options: dict[str, Any]) -> PruneError:
    """The error for a loss that is not finite: a walk names the layer where that begins, or none does."""
    try:
        for _ in walk(model, [batch], **options):
            pass
    except PruneError as error:
        return error
    return PruneError("the loss is not finite, though what leaves every layer is; compute in float32 or bfloat16")


def _steep(group: Group, module: nn.Module) -> PruneError:
    """The error for scores that are not finite. Gradients come from the end: the last that is not finite was first."""
    found = [
        name for name, own in module.named_parameters() if own.grad is not None and not bool(own.grad.isfinite().all())
    ]
    where = f"the gradient of {found[-1]}" if found else f"weight x gradient of {group.name}"
    return PruneError(f"{where} is not finite; compute in float32 or bfloat16")


def _each(batches: Sequence[Batch]) -> Iterator[list[Batch]]:
    """Every sequence as a batch of its own."""
    for batch in batches:
        for row in range(len(next(iter(batch.values())))):
            yield [{key: value[row : row + 1] for key, value in batch.items()}]


def _asked(model: Model, batch: Batch) -> tuple[Tensor, Tensor]:
    """Where the model is asked for something, bool, and the answers, int64: shaped as its logits without the last dim.

    For the next token, every position but the last whose token is text and is followed by text.
    """
    if task(model) != "next token":
        classes = task(model) in ("text classes", "image classes")  # one label each; plain text has one a token
        if "labels" not in batch or (classes and batch["labels"].ndim > 1):
            raise PruneError(f"criterion 'taylor' needs the labels of {model.architecture.__name__}'s examples")
        return batch["labels"] != IGNORED, batch["labels"]
    ids = batch["input_ids"]
    text = batch.get("attention_mask", torch.ones_like(ids)).bool()
    following = torch.nn.functional.pad(text[:, 1:] & text[:, :-1], (0, 1))  # the last has nothing after it
    return following, ids.roll(-1, dims=1)


def _loss(model: Model, module: nn.Module, batch: Batch, device: str | torch.device) -> Tensor:
    """Summed cross-entropy of what the model is asked."""
    inputs = {key: batch[key].to(device) for key in INPUTS if key in batch}
    cache = {"use_cache": False} if task(model) in ("next token", "text pairs") else {}
    asked, answers = (found.to(device) for found in _asked(model, batch))
    logits = module(**inputs, **cache).logits[asked].float()
    return torch.nn.functional.cross_entropy(logits, answers[asked], reduction="sum")


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
    needed, free = 2 * size, available(str(device))
    if needed > free:
        raise PruneError(
            f"criterion 'taylor' needs gradients: {needed / 2**30:.1f} GiB for weights and gradients, and {device} has"
            f" {free / 2**30:.1f} GiB free; criteria that walk (wanda, obs) need one layer at a time"
        )
