"""A model of many layers as a graph: one layer of each kind is traced, and written once for each layer of that kind.

Tracing takes seconds for each layer, and the layers of a model differ in their weights alone, so that the time would
grow with the depth for nothing. What is taken for the same is compared with PyTorch afterwards, like every graph.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prune.exports.repeat import Layer, nested, repeated
from prune.model import tracing
from prune.model.tracing import Graph, Ports

ENTERS, LEAVES = "enters", "leaves"  # names of the values between layers while they are outputs of the traced graph
PER_LAYER = ("layer_types", "mlp_layer_types")  # lists of a config with an entry for each layer
Maker = Callable[[PreTrainedModel], Ports]


@dataclass(frozen=True)
class Stack:
    """A model's layers: the path of their list, and for each layer the first one of its kind."""

    path: str
    first: tuple[int, ...]

    @property
    def kinds(self) -> list[int]:
        """The layers that are the first of their kind."""
        return sorted(set(self.first))


def traced(model: PreTrainedModel, path: str | None, ports: Maker, *, opset: int, whole: bool = False) -> Graph:
    """The graph of a model whose layers are at `path`; `ports` says what goes in and out. `whole` traces every layer.

    `ends` of the graph are the layers' outputs, by path; `repeats` says whether a layer was written more than once.
    """
    if path is None:
        return tracing.traced(ports(model), opset=opset)
    stack = _stack(model, path, whole=whole)
    short = _shortened(model, stack)
    own = ports(short)
    with _watched(short, stack.path) as seen:
        marks = [ENTERS, *(f"{LEAVES}.{place}" for place in range(len(stack.kinds)))]
        marked = replace(own, module=_Marked(own.module, seen), outputs=[*own.outputs, *marks])
        found = tracing.traced(marked, opset=opset, free=path)
        if len(stack.kinds) < len(stack.first) and nested(found):
            return traced(model, path, ports, opset=opset, whole=True)
    full = own if len(stack.kinds) == len(stack.first) else ports(model)
    return repeated(found, _layers(model, stack), full, marks)


def _stack(model: PreTrainedModel, path: str, *, whole: bool) -> Stack:
    layers: Any = model.get_submodule(path)
    said = [_description(model.config, layer, index) for index, layer in enumerate(layers)]
    first = range(len(said)) if whole else (said.index(one) for one in said)
    return Stack(path, tuple(first))


def _description(config: Any, layer: nn.Module, index: int) -> tuple[Any, ...]:
    """What a layer computes, but for its weights: layers of which this is equal are of one kind."""
    listed = [getattr(config, name)[index] for name in PER_LAYER if getattr(config, name, None)]
    return (*listed, *(_own(name, module) for name, module in layer.named_modules()))


def _own(name: str, module: nn.Module) -> tuple[Any, ...]:
    plain = {key: value for key, value in vars(module).items() if isinstance(value, (bool, int, float, str, tuple))}
    plain.pop("layer_idx", None)
    weights = [(key, value.shape, value.dtype) for key, value in module.named_parameters(recurse=False)]
    buffers = [
        (key, value.dtype, value.double().numpy().tobytes()) for key, value in module.named_buffers(recurse=False)
    ]
    return name, type(module), sorted(plain.items()), weights, buffers


def _shortened(model: PreTrainedModel, stack: Stack) -> PreTrainedModel:
    """The model with the first layer of each kind alone; weights are shared, and `model` is not changed."""
    if len(stack.kinds) == len(stack.first):
        return model
    layers: Any = model.get_submodule(stack.path)
    left_out = [layer for index, layer in enumerate(layers) if index not in stack.kinds]
    held = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    short: PreTrainedModel = copy.deepcopy(model, {**held, **{id(layer): nn.Identity() for layer in left_out}})
    kept = [short.get_submodule(f"{stack.path}.{index}") for index in stack.kinds]
    short.set_submodule(stack.path, nn.ModuleList(kept))
    for place, layer in enumerate(kept):
        part: Any
        for part in layer.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = place
    short.config.num_hidden_layers = len(kept)
    for name in PER_LAYER:
        if listed := getattr(short.config, name, None):
            setattr(short.config, name, [listed[index] for index in stack.kinds])
    return short


@contextmanager
def _watched(model: PreTrainedModel, path: str) -> Iterator[list[Tensor]]:
    """A list that is filled, in a forward pass, with what enters the first layer and what leaves each."""
    layers: Any = model.get_submodule(path)
    seen: list[Tensor] = []

    def enters(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        seen[:] = [args[0] if args else next(iter(kwargs.values()))]

    def leaves(_: nn.Module, __: Any, output: Any) -> None:
        seen.append(output if isinstance(output, Tensor) else output[0])

    handles = [layers[0].register_forward_pre_hook(enters, with_kwargs=True)]
    handles += [layer.register_forward_hook(leaves) for layer in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


class _Marked(nn.Module):
    """A function of plain tensors that also gives what was seen between the layers."""

    def __init__(self, module: nn.Module, seen: Sequence[Tensor]):
        super().__init__()
        self.module = module
        self.seen = lambda: list(seen)

    def forward(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        return [*self.module(inputs), *self.seen()]


def _layers(model: PreTrainedModel, stack: Stack) -> list[Layer]:
    """For each layer where it is, where the first of its kind is in what was traced, and its tensors."""
    made = []
    for index, first in enumerate(stack.first):
        module, place = model.get_submodule(f"{stack.path}.{index}"), stack.kinds.index(first)
        with torch.no_grad():
            tensors = {name: value.detach() for name, value in (*module.named_parameters(), *module.named_buffers())}
        own, like = f"{stack.path}.{index}", f"{stack.path}.{place}"
        made.append(Layer(own, index, like, place, index == first, tensors))
    return made
