"""The proof of a cut: masking the removed units in the big model and slicing them away give the same layer outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prune.errors import PruneError
from prune.model.groups import Slice, by_name, groups
from prune.model.halves import left_out
from prune.model.model import Model
from prune.model.walk import Batch, Visit, walk
from prune.progress import Progress
from prune.remove import routing, stream
from prune.remove.cut import halves, layers
from prune.remove.gather import module_path
from prune.remove.norms import masked_factor

TOLERANCE = 1e-4  # largest difference, relative to the largest output of the layer


def prove(
    big: Model,
    plan: Mapping[str, Sequence[int]],
    small: Model,
    batch: Batch,
    *,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Walk both models in float32 over one batch, token ids (batch, length) or images, layer beside layer.

    In the big one, removed heads and channels have their consumer's input zeroed, removed experts a router logit of
    minus infinity, and removed layers, attentions and MLPs pass their input on. Where positions of the hidden state go,
    they are zero wherever the stream is read, norms are rescaled by the share that is kept, and the logits must agree
    too. Gives the largest relative difference of any layer's
    output. Raises PruneError, naming the layer, when one is over the tolerance: the cut is then wrong and must not be
    used.
    """
    kept, gone = layers(big, plan), halves(big, plan)
    masks = masked_inputs(big, plan)
    narrower = len(plan.get("width", ())) not in (0, big.numbers["width"])
    exact = stream.exact(big)
    options: dict[str, Any] = {"device": device, "dtype": torch.float32, "head": narrower and exact}
    sliced = walk(small, [batch], **options)
    differences: dict[int, float] = {}
    tokens = 0
    other: Visit | None = None
    for visit in walk(big, [batch], **options, progress=progress):
        inside = visit.index < big.numbers["layers"]
        if inside:
            tokens = max(tokens, visit.inputs[0].shape[:2].numel())
        if inside and visit.index not in kept:
            visit.outputs = visit.inputs
            continue
        without = [big.family.sublayers[half] for half in gone.get(visit.index, ())]
        with zeroing(visit, big, masks), left_out(visit.module, without), stream.masking(big, visit, plan) as width:
            if narrower:
                visit.inputs[0] = stream.masked(visit.inputs[0], width)
            if narrower and not exact and not differences:  # the embedding was rounded; the rest is to be proved
                other = next(sliced)
                visit.inputs[0][..., width] = other.inputs[0]
            expected = visit.run()[0]
        if narrower and inside:
            expected = visit.outputs[0] = stream.masked(expected, width)
            expected = expected[..., width]
        if inside:  # one layer at a time, of the two models together
            visit.free()
        other = other or next(sliced)
        found = other.run()[0]
        if inside:
            other.free()
        other = None
        differences[visit.index] = relative_difference(expected, found, visit.mask(0))
        if not differences[visit.index] <= TOLERANCE:
            raise PruneError(
                f"masked and sliced outputs differ by {differences[visit.index]:.1e} of their scale, over"
                f" {TOLERANCE:.0e}: the cut is wrong and is not kept",
                where=big.layer(visit.index) if inside else "the head",
            )
    return {
        "max_relative_difference": max(differences.values()),
        "tolerance": TOLERANCE,
        "layers": len(differences),
        "tokens": tokens,
    }


@dataclass(frozen=True)
class Mask:
    """What stands for removed units at one parameter: positions of its input that are zeroed, or experts left out.

    A norm over all heads has its output multiplied by `factor` besides, as cutting multiplies its weight.
    """

    piece: Slice
    positions: Tensor  # int64 (n,), as the slice counts them
    factor: float = 1.0


def masked_inputs(model: Model, plan: Mapping[str, Sequence[int]]) -> dict[str, Mask]:
    """Tensor name -> the mask of the removed units there: consumers, routers, and norms that run over a cut dim."""
    names = [name for name in plan if name.count(".") == 2]
    out = {name for layer, kinds in halves(model, plan).items() for kind in kinds for name in model.half(layer, kind)}
    kinds = sorted({name.rsplit(".", 1)[-1] for name in names})
    masks: dict[str, Mask] = {}
    for name, group in by_name(groups(model, kinds), names).items():
        removed = sorted(set(range(group.units)) - set(plan[name]))
        for piece in group.slices if removed else ():
            if piece.name not in out and (piece.role in ("consumer", "router") or piece.norm_of):
                positions = piece.index[removed].reshape(-1)
                if piece.name in masks:
                    positions = torch.cat([masks[piece.name].positions, positions]).unique()
                factor = masked_factor(model, piece, positions) if piece.norm_of else 1.0
                masks[piece.name] = Mask(piece, positions, factor)
    return masks


@contextmanager
def zeroing(visit: Visit, model: Model, masks: Mapping[str, Mask]) -> Iterator[None]:
    """While inside, a layer of the model computes as if the masked units were not there."""
    root = model.layer(visit.index) if visit.index < model.numbers["layers"] else "none"
    with ExitStack() as hooks:
        for name, mask in masks.items():
            if name.startswith(root + "."):
                module = visit.module.get_submodule(module_path(mask.piece, root))
                hooks.enter_context(_masking(module, mask))
        yield


def _masking(module: nn.Module, mask: Mask) -> AbstractContextManager[None]:
    if mask.piece.role == "router":
        return routing.without(module, mask.positions)
    if mask.piece.stacked:
        return routing.one_by_one(module, _zero_in_experts(module, mask.positions))
    return _hooked(module, mask)


@contextmanager
def _hooked(module: nn.Module, mask: Mask) -> Iterator[None]:
    def zero(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        masked = args[0].clone()
        masked[..., mask.positions.to(masked.device)] = 0
        return (masked, *args[1:])

    handles = [module.register_forward_pre_hook(zero)]
    if mask.factor != 1.0:
        handles.append(module.register_forward_hook(lambda _, __, output: output * mask.factor))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _zero_in_experts(experts: nn.Module, positions: Tensor) -> routing.Watch:
    inner = experts.down_proj.shape[-1]  # type: ignore[index]

    def watch(call: routing.Call) -> Tensor:
        masked = call.inner.clone()
        masked[:, positions[positions // inner == call.expert].to(masked.device) % inner] = 0
        return masked

    return watch


def relative_difference(expected: Tensor, found: Tensor, mask: Tensor | None = None) -> float:
    """The largest difference over the largest value, at positions that are text."""
    if mask is not None:
        expected, found = expected[mask], found[mask]
    scale = expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return ((expected - found).abs().max() / scale).item()
