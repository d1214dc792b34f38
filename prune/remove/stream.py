"""The hidden state's own width: norms over it see fewer positions, and are rescaled by the ratio that was measured.

A norm divides by the root mean square over the width. Its weight is multiplied by rms(kept) / rms(all), so that what is
kept leaves it about as large as it did; exactly so when what goes is dead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prune.model.model import Model
from prune.model.tensors import Edit
from prune.model.walk import Batch, Visit, walk
from prune.remove.stages import text

Plan = Mapping[str, Sequence[int]]


def factors(model: Model, plan: Plan) -> dict[str, tuple[Callable[[], float], float]]:
    """Tensor -> what it is multiplied by when the width is cut, worked out when it is read, and its offset."""
    own = model.family.stream
    kept, width = _kept(model, plan), model.numbers["width"]
    if own is None or len(kept) == width:
        return {}
    found: dict[str, tuple[Callable[[], float], float]] = {
        name: (partial(ratio, model, name, kept), own.offset) for name in norms(model)
    }
    if own.scaled:  # transformers multiplies the embedding by the root of the new width
        embedding = f"{own.embedding}.weight"
        found[embedding] = (lambda: (width / len(kept)) ** 0.5, 0.0)
        if f"{own.head}.weight" not in model.tensors.info:  # the head is the embedding: its inputs make up for it
            final = f"{own.final}.weight"
            found[final] = (lambda: ratio(model, final, kept) * (len(kept) / width) ** 0.5, own.offset)
    return found


def norms(model: Model) -> list[str]:
    """The weights of the norms over the width, in the order in which the stream meets them."""
    own = model.family.stream
    assert own is not None, model.family.model_type
    inside = [f"{model.layer(i)}.{norm}.weight" for i in range(model.numbers["layers"]) for norm in own.norms]
    return [name for name in (*inside, f"{own.final}.weight") if name in model.tensors.info]


def ratio(model: Model, name: str, kept: Tensor) -> float:
    """rms(kept) / rms(all) of what enters a norm: as `measured` found it, else as large as the embedding has it."""
    if name in model.energies:
        energy = model.energies[name]
    else:
        assert model.family.stream is not None
        energy = model.tensors.read(f"{model.family.stream.embedding}.weight").float().square().mean(0)
    tiny = torch.finfo(torch.float32).tiny
    return float((energy[kept].mean() / energy.mean().clamp_min(tiny)).sqrt())


def measured(model: Model, batches: Sequence[Batch], **options: Any) -> Model:
    """The model with the mean square of every position that enters each norm; `options` are those of `walk`."""
    own = model.family.stream
    assert own is not None, model.family.model_type
    found: dict[str, Tensor] = {}
    tokens = 0
    for visit in walk(model, batches, **options):
        root = model.layer(visit.index)
        paths = [path for path in own.norms if f"{root}.{path}.weight" in model.tensors.info]
        visit.outputs, tokens = [], 0
        for b in range(len(batches)):
            seen: dict[str, Tensor] = {}
            with _watching(visit.module, paths, seen):
                visit.outputs.append(visit.forward(b))
            mask = visit.mask(b)
            tokens += visit.tokens(b)
            for path, entered in seen.items():
                _add(found, f"{root}.{path}.weight", text(entered, mask))
        if visit.index == model.numbers["layers"] - 1:
            for b, left in enumerate(visit.outputs):
                _add(found, f"{own.final}.weight", text(left, visit.mask(b)))
    return replace(model, energies={name: total / tokens for name, total in found.items()})


def _add(sums: dict[str, Tensor], name: str, states: Tensor) -> None:
    added = states.square().sum(0).cpu()
    sums[name] = sums[name] + added if name in sums else added


@contextmanager
def _watching(layer: nn.Module, paths: Sequence[str], seen: dict[str, Tensor]) -> Iterator[None]:
    with ExitStack() as hooks:
        for path in paths:

            def note(_: nn.Module, args: tuple[Tensor, ...], path: str = path) -> None:
                seen[path] = args[0]

            hooks.callback(layer.get_submodule(path).register_forward_pre_hook(note).remove)
        yield


def _kept(model: Model, plan: Plan) -> Tensor:
    return torch.tensor(list(plan.get("width", range(model.numbers["width"]))))


@contextmanager
def masking(model: Model, visit: Visit, plan: Plan) -> Iterator[Tensor]:
    """While inside, a layer of the big model (or its head) computes as if the positions that go were not there.

    What enters it must have been zeroed by `masked`. Gives the positions that stay.
    """
    kept, width = _kept(model, plan), model.numbers["width"]
    own = model.family.stream
    with ExitStack() as hooks:
        if own is not None and len(kept) < width:
            inside = visit.index < model.numbers["layers"]
            root = f"{model.layer(visit.index)}." if inside else ""
            for path in own.norms if inside else (own.final,):
                name = f"{root}{path}.weight"
                if name in model.tensors.info:
                    module = visit.module.get_submodule(path)
                    scale = _as_stored(model, name, kept) * (len(kept) / width) ** 0.5
                    hooks.callback(module.register_forward_pre_hook(partial(_zero, kept)).remove)
                    hooks.callback(module.register_forward_hook(partial(_scaled, scale)).remove)
                    hooks.enter_context(_epsilon(module, len(kept) / width))
        yield kept


@contextmanager
def _epsilon(norm: nn.Module, share: float) -> Iterator[None]:
    """While inside, what a norm adds to its mean is scaled as the zeros scale the mean."""
    (name,) = (name for name in ("variance_epsilon", "eps") if hasattr(norm, name))
    before = getattr(norm, name)
    setattr(norm, name, before * share)
    try:
        yield
    finally:
        setattr(norm, name, before)


def masked(states: Tensor, kept: Tensor) -> Tensor:
    """The same with zeros (..., width) wherever the width is not kept."""
    found = torch.zeros_like(states)
    found[..., kept] = states[..., kept]
    return found


def _zero(kept: Tensor, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (masked(args[0], kept), *args[1:])


def _scaled(scale: Tensor, _: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output * scale.to(output.device)


def _as_stored(model: Model, name: str, kept: Tensor) -> Tensor:
    """What each position of a norm is multiplied by once its new weight is rounded to the type that is stored."""
    assert model.family.stream is not None
    weight, offset = model.tensors.read(name), model.family.stream.offset
    scale = ratio(model, name, kept)
    before = weight.float() + offset
    after = Edit(name, {}, scale, offset)(weight).float() + offset
    return torch.where(before == 0, scale, after / before)


def exact(model: Model) -> bool:
    """Whether only norms are rounded when the width is cut: a scaled embedding is too, unless it is float32."""
    own = model.family.stream
    if own is None or not own.scaled:
        return True
    return model.tensors.info[f"{own.embedding}.weight"].dtype == torch.float32
