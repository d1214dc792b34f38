"""The proof of a cut: masking the removed units in the big model and slicing them away give the same layer outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prune.errors import PruneError
from prune.model.groups import by_name, groups
from prune.model.model import Model
from prune.model.walk import Batch, Visit, walk
from prune.progress import Progress

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
    """Walk both models in float32 over one batch of token ids (batch, length), layer beside layer.

    In the big one, removed heads and channels have their consumer's input zeroed and removed layers pass their input
    on. Gives the largest relative difference of any layer's output, and each kept layer's. Raises PruneError, naming
    the layer, when one is over the tolerance: the cut is then wrong and must not be used.
    """
    kept = list(plan.get("layers", range(big.numbers["layers"])))
    masks = masked_inputs(big, plan)
    sliced = walk(small, [batch], device=device, dtype=torch.float32)
    differences: dict[int, float] = {}
    for visit in walk(big, [batch], device=device, dtype=torch.float32, progress=progress):
        if visit.index not in kept:
            visit.outputs = visit.inputs
            continue
        with zeroing(visit, big.family.layer(visit.index), masks):
            expected = visit.run()[0]
        found = next(sliced).run()[0]
        differences[visit.index] = relative_difference(expected, found, visit.mask(0))
        if not differences[visit.index] <= TOLERANCE:
            raise PruneError(
                f"masked and sliced outputs differ by {differences[visit.index]:.1e} of their scale, over"
                f" {TOLERANCE:.0e}: the cut is wrong and is not kept",
                where=big.family.layer(visit.index),
            )
    return {
        "max_relative_difference": max(differences.values()),
        "tolerance": TOLERANCE,
        "layers": len(differences),
        "tokens": batch["input_ids"].numel(),
    }


def masked_inputs(model: Model, plan: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Consumer tensor name -> the positions of its input that belong to removed units."""
    names = [name for name in plan if name != "layers"]
    kinds = sorted({name.rsplit(".", 1)[-1] for name in names})
    masks: dict[str, Tensor] = {}
    for name, group in by_name(groups(model, kinds), names).items():
        removed = sorted(set(range(group.units)) - set(plan[name]))
        for piece in group.consumers:
            positions = piece.index[removed].reshape(-1)
            masks[piece.name] = torch.cat([masks[piece.name], positions]).unique() if piece.name in masks else positions
    return masks


@contextmanager
def zeroing(visit: Visit, root: str, masks: Mapping[str, Tensor]) -> Iterator[None]:
    """While inside, the layer's consumers see zero at the masked positions of their input."""
    handles = []
    for name, positions in masks.items():
        if name.startswith(root + "."):
            module = visit.module.get_submodule(name.removeprefix(root + ".").rsplit(".", 1)[0])
            handles.append(module.register_forward_pre_hook(_zero(positions)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _zero(positions: Tensor) -> Any:
    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        masked = args[0].clone()
        masked[..., positions.to(masked.device)] = 0
        return (masked, *args[1:])

    return hook


def relative_difference(expected: Tensor, found: Tensor, mask: Tensor | None = None) -> float:
    """The largest difference over the largest value, at positions that are text."""
    if mask is not None:
        expected, found = expected[mask], found[mask]
    scale = expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return ((expected - found).abs().max() / scale).item()
