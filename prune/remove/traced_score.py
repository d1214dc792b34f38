"""Scores for the channels of a traced network: the same criteria as elsewhere, gathered from its plain forward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from prune.errors import PruneError
from prune.model.groups import Group, along
from prune.remove.criteria import magnitude, random, wanda
from prune.remove.gather import Statistics
from prune.remove.traced import NORMS, Traced, evaluating

Criterion = Literal["magnitude", "wanda", "taylor", "random"]
Loss = Callable[[Any, Any], Tensor]


def score(
    traced: Traced,
    batches: Iterable[tuple[Any, Any]] = (),
    *,
    criterion: Criterion = "wanda",
    loss: Loss | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """One float32 tensor (channels,) per group, high = keep.

    `batches` are pairs of inputs and targets; wanda looks at the inputs, taylor at `loss(output, target)` too
    (first order: the loss that the channel's consumers would lose without it, Molchanov et al.,
    https://arxiv.org/abs/1906.10771). Raises PruneError when data or the loss are missing.
    """
    pairs = list(batches)
    if criterion in ("wanda", "taylor") and not pairs:
        raise PruneError(f"criterion {criterion!r} looks at data; give batches of inputs and targets")
    if criterion == "taylor":
        if loss is None:
            raise PruneError("criterion 'taylor' needs a loss: a function of output and target")
        return _taylor(traced, pairs, loss)
    weights = dict(traced.module.named_parameters())
    groups = [replace(g, slices=tuple(s for s in g.slices if s.name in weights)) for g in traced.groups]
    if criterion == "random":
        return {g.name: random.score(g, weights.__getitem__, {}, seed=seed) for g in groups}
    with torch.no_grad():
        if criterion == "magnitude":
            return {g.name: magnitude.score(g, weights.__getitem__, {}) for g in groups}
        squares = _squares(traced, pairs)
        return {g.name: wanda.score(g, weights.__getitem__, squares) for g in groups}


def _squares(traced: Traced, pairs: Sequence[tuple[Any, Any]]) -> dict[str, Statistics]:
    """The mean square of every input channel of every consumer, over all positions."""
    names = {piece.name for group in traced.groups for piece in group.consumers}
    sums = dict.fromkeys(names, torch.zeros(()))
    counts = dict.fromkeys(names, 0)

    def listen(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            channel = -1 if isinstance(module, nn.Linear) else 1
            inputs = args[0].movedim(channel, -1).flatten(0, -2).float()
            sums[name] = sums[name] + inputs.square().sum(0)
            counts[name] += len(inputs)

        return hook

    handles = [traced.module.get_submodule(n.rpartition(".")[0]).register_forward_pre_hook(listen(n)) for n in names]
    try:
        with evaluating(traced.module):
            for inputs, _ in pairs:
                traced.module(*_arguments(inputs))
    finally:
        for handle in handles:
            handle.remove()
    return {name: {"square": sums[name] / counts[name]} for name in names}


def _taylor(traced: Traced, pairs: Sequence[tuple[Any, Any]], loss: Loss) -> dict[str, Tensor]:
    """Per channel, |weight x gradient| summed over its consumers' columns, averaged over batches.

    Consumers and not producers: a weight before a batch norm has no first-order effect along itself. Gradients are
    those of copies, so that a frozen network has them too; they are zero for a weight that the loss does not see.
    """
    names = sorted({piece.name for group in traced.groups for piece in group.consumers})
    weights = {name: traced.module.get_parameter(name).detach().clone().requires_grad_(True) for name in names}
    scores = {group.name: torch.zeros(group.units) for group in traced.groups}
    with evaluating(traced.module), torch.enable_grad():
        for inputs, target in pairs:
            value = loss(functional_call(traced.module, weights, _arguments(inputs)), target)
            found = torch.autograd.grad(value, list(weights.values()), allow_unused=True, materialize_grads=True)
            gradients = dict(zip(names, found, strict=True))
            for group in traced.groups:
                scores[group.name] += _effect(group, weights, gradients).abs() / len(pairs)
    return scores


def _effect(group: Group, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> Tensor:
    total = torch.zeros(group.units)
    for piece in group.consumers:
        total += along(piece, (weights[piece.name] * gradients[piece.name]).detach())[piece.index].sum(1)
    return total


def _arguments(inputs: Any) -> tuple[Any, ...]:
    return inputs if isinstance(inputs, tuple) else (inputs,)


def recalibrate(module: nn.Module, batches: Iterable[tuple[Any, Any]]) -> nn.Module:
    """Measure the means and variances of all batch norms anew, in place: after a cut they are those of other inputs.

    `batches` are pairs of inputs and targets; no targets are looked at and no weight changes.
    """
    norms = [part for part in module.modules() if isinstance(part, NORMS) and part.track_running_stats]
    momenta = [part.momentum for part in norms]
    with evaluating(module), torch.no_grad():
        for part in norms:
            part.reset_running_stats()
            part.momentum = None  # a plain mean over batches
            part.train()
        for inputs, _ in batches:
            module(*_arguments(inputs))
    for part, momentum in zip(norms, momenta, strict=True):
        part.momentum = momentum
    return module
