"""The linears of a layer in the order in which they are solved: those that read the same input together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from prune.model.groups import Slice, groups, kinds
from prune.model.model import Model

SOLVED = ("heads", "channels")  # kinds whose consumers and producers are linears of their own
Seen = dict[str, tuple[Tensor, Tensor | None]]  # module path -> its input and, where it was run, its output


@dataclass(frozen=True)
class Linear:
    """One linear of a layer: its module's path there, and which of the unpruned outputs (kept,) it still has."""

    path: str
    rows: Tensor | None = None


@dataclass(frozen=True)
class Stage:
    """Linears that read the same input. `output` says that they write to the residual stream."""

    linears: tuple[Linear, ...]
    output: bool


def stages(
    model: Model, layer: int, kept: Mapping[str, Mapping[int, Tensor]], width: Tensor | None = None, *, inner: bool
) -> list[Stage]:
    """A layer's stages: attention before MLP, and with `inner` what feeds each output linear before it.

    `kept` says which positions of the unpruned layer's parameters stay, by name in the layer and dim, and
    `width` which positions of the stream do, if not all. Stacked experts have none.
    """
    found: list[Stage] = []
    for kind in (kind for kind in SOLVED if kind in kinds(model)):
        group = next((g for g in groups(model, kind) if g.layer == layer), None)
        pieces = [p for p in group.slices if _solvable(model, p)] if group else []
        producers = [_linear(model, layer, p, kept) for p in pieces if p.role == "producer"]
        consumers = [replace(_linear(model, layer, p, {}), rows=width) for p in pieces if p.role == "consumer"]
        if inner and producers:
            found.append(Stage(tuple(producers), output=False))
        found += [Stage((linear,), output=True) for linear in consumers]
    return found


def _solvable(model: Model, piece: Slice) -> bool:
    """Plain matrices; a norm between a producer and its unit (OLMo2) is no obstacle, stacked experts are."""
    return piece.name.endswith(".weight") and len(model.tensors.info[piece.name].shape) == 2 and not piece.stacked


def _linear(model: Model, layer: int, piece: Slice, kept: Mapping[str, Mapping[int, Tensor]]) -> Linear:
    name = piece.name.removeprefix(model.layer(layer) + ".")
    return Linear(name.removesuffix(".weight"), kept.get(name, {}).get(piece.dim))


class _Reached(Exception):
    """What was watched has been seen; the rest of the layer need not be run."""


@contextmanager
def watching(
    layer: nn.Module, paths: Sequence[str], *, stop: Literal["entered", "left"] | None = None
) -> Iterator[Seen]:
    """While inside, `seen` holds what entered and left the modules at `paths` in the last run of the layer.

    With `stop` a run ends, through `until_seen`, as soon as the first of them was entered, or the last of them left.
    """
    seen: Seen = {}

    def entered(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen[path] = (args[0], None)
            if stop == "entered":
                raise _Reached

        return hook

    def left(path: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            seen[path] = (args[0], output)
            if stop == "left" and all(path in seen and seen[path][1] is not None for path in paths):
                raise _Reached

        return hook

    with ExitStack() as hooks:
        for path in paths:
            module = layer.get_submodule(path)
            hooks.callback(module.register_forward_pre_hook(entered(path)).remove)
            hooks.callback(module.register_forward_hook(left(path)).remove)
        yield seen


def until_seen(run: Callable[[], Tensor]) -> Tensor | None:
    """What a run gives, or None when it was ended because everything watched has been seen."""
    try:
        return run()
    except _Reached:
        return None


@contextmanager
def silent(layer: nn.Module, path: str) -> Iterator[None]:
    """While inside, the module at `path` gives zeros."""
    handle = layer.get_submodule(path).register_forward_hook(lambda _, __, output: torch.zeros_like(output))
    try:
        yield
    finally:
        handle.remove()


def weight_of(module: nn.Module) -> Tensor:
    """A linear's weight as (outputs, inputs), whichever way it is stored."""
    weight: Tensor = module.weight.data  # type: ignore[assignment]
    return weight if isinstance(module, nn.Linear) else weight.T


def set_weights(module: nn.Module, weight: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
    """Give a linear new weights (outputs, inputs); gives them by parameter name, laid out and typed as
    they are stored."""
    old: Tensor = module.weight  # type: ignore[assignment]
    stored = weight if isinstance(module, nn.Linear) else weight.T
    new = {"weight": stored.to(old.dtype).contiguous()}
    if bias is not None and module.bias is not None:
        new["bias"] = bias.to(old.dtype)
    for name, value in new.items():
        setattr(module, name, nn.Parameter(value, requires_grad=False))
    return new


def text(states: Tensor, mask: Tensor | None) -> Tensor:
    """Hidden states at positions that are text, as float32 (tokens, features)."""
    if mask is not None:  # some modules see their inputs as one row of tokens
        states = states[mask] if states.ndim > 2 else states[mask.reshape(-1)]
    return states.reshape(-1, states.shape[-1]).float()
