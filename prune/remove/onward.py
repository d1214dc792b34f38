"""A layer whose attention is settled need not run it again: the stream after it is kept, and only the MLP is run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prune.model.family import Sublayer
from prune.model.halves import left_out
from prune.model.walk import Visit

ONWARD = "onward"
NEAR = 1e-4  # relative difference up to which running on from the middle is running the layer


class _Given(nn.Module):
    """Stands for an attention whose output linear has its input at hand."""

    def __init__(self, output: nn.Module, read: Tensor, returns: int):
        super().__init__()
        self.output, self.read, self.returns = output, read, returns

    def forward(self, *_: Any, **__: Any) -> Any:
        found = self.output(self.read)
        return (found, *[None] * (self.returns - 1)) if self.returns else found


def move_on(
    visit: Visit, halves: Mapping[str, Sublayer], path: str, read: list[Tensor], tried: dict[str, bool]
) -> bool:
    """Put the stream as it is after attention in place of a visit's inputs, if the MLP alone then gives what the layer
    would; say whether that is so.

    `read` is what the attention's output linear at `path` reads, by batch; `tried` remembers what the first layer of a
    walk has shown. From there on the layer is to be run with
    its attention left out. Where MLP and attention read the same (GPT-NeoX), nothing is changed.
    """
    attention, mlp = halves["attention"], halves["mlp"]
    if not path.startswith(f"{attention.module}.") or not tried.get(ONWARD, True):
        return False
    output = visit.module.get_submodule(path)
    before = visit.inputs[0]
    whole = None if ONWARD in tried else visit.forward(0)
    for b in range(len(visit.inputs)):
        with (
            left_out(visit.module, [mlp]),
            _standing(visit.module, attention, _Given(output, read[b], attention.returns)),
        ):
            middle = visit.forward(b)
        if whole is not None and b == 0:
            with left_out(visit.module, [attention]):
                found = visit.call(0, middle)
            scale = torch.linalg.vector_norm(whole)
            tried[ONWARD] = bool(torch.linalg.vector_norm(found - whole) <= NEAR * scale)
            if not tried[ONWARD]:
                visit.inputs[0] = before
                return False
        visit.inputs[b] = middle
        read[b] = middle.new_empty(0)
    return True


@contextmanager
def _standing(layer: nn.Module, half: Sublayer, instead: nn.Module) -> Iterator[None]:
    """While inside, `instead` stands for the module of a half."""
    module = layer.get_submodule(half.module)
    layer.set_submodule(half.module, instead)
    try:
        yield
    finally:
        layer.set_submodule(half.module, module)


def sequential(halves: Mapping[str, Sublayer], layer: nn.Module) -> bool:
    """Whether a layer has both halves as modules of its own."""
    paths: Sequence[str] = [name for name, _ in layer.named_modules()]
    return {"attention", "mlp"} <= set(halves) and all(half.module in paths for half in halves.values())
