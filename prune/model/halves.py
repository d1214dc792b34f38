"""Layers without their attention or their MLP: what stands in for the half that is left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from prune.model.family import Sublayer


class Nothing(nn.Module):
    """Gives zeros in place of an attention or an MLP, or one of its arguments: the one at the place `passes`.

    In place of an attention it still counts tokens in the cache. Positions and masks are read off the cache's first
    layers, which must know how many tokens there were: one number is kept for each.
    """

    def __init__(self, layer_idx: int, returns: int = 0, passes: int | None = None):
        super().__init__()
        self.layer_idx, self.returns, self.passes = layer_idx, returns, passes

    def forward(self, hidden_states: Tensor, *args: Any, **named: Any) -> Tensor | tuple[Tensor | None, ...]:
        found = torch.zeros_like(hidden_states) if self.passes is None else (hidden_states, *args)[self.passes]
        if not self.returns:
            return found
        for cache in (value for value in (*args, *named.values()) if isinstance(value, Cache)):
            count = hidden_states.new_zeros(len(hidden_states), 1, hidden_states.shape[1], 1)
            cache.update(count, count, self.layer_idx)
        return (found, *[None] * (self.returns - 1))


def leave_out(layer: nn.Module, half: Sublayer, layer_idx: int) -> None:
    """Take attention or MLP out of a layer, in place: it gives nothing, and its norms pass on what they are given."""
    layer.set_submodule(half.module, Nothing(layer_idx, half.returns, half.passes))
    for path in half.others:
        layer.set_submodule(path, nn.Identity())


@contextmanager
def left_out(layer: nn.Module, halves: Sequence[Sublayer]) -> Iterator[None]:
    """While inside, a layer computes without these halves."""
    modules = {path: layer.get_submodule(path) for half in halves for path in half.paths}
    for half in halves:
        leave_out(layer, half, 0)
    try:
        yield
    finally:
        for path, module in modules.items():
            layer.set_submodule(path, module)
