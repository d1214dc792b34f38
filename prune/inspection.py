"""What is in a model: its groups, and the share of parameters and of work that each kind holds."""

from __future__ import annotations

from math import prod
from typing import Any

from prune.measure import flops_per_token, layer_flops, multiplied
from prune.model.groups import KINDS, Group, groups, kinds
from prune.model.model import Model


def inspect(model: Model, *, length: int = 1024) -> dict[str, Any]:
    """Sizes, and per kind of group the units, parameters and FLOPs they hold, with their shares of the whole.

    Parameters count tied weights once. FLOPs are those of one forward pass per token at a context of `length` tokens,
    a multiply-add as two; the attention products are counted in full, norms and activations are not.
    """
    parameters = model.tensors.parameters
    per_layer = [layer_flops(model, layer, length) for layer in range(model.numbers["layers"])]
    flops = flops_per_token(model, length)
    return {
        "source": model.source,
        "model_type": model.config.model_type,
        "architecture": model.architecture.__name__,
        "dtype": ", ".join(sorted({str(i.dtype).removeprefix("torch.") for i in model.tensors.info.values()})),
        "uniform": model.uniform,
        "parameters": parameters,
        "bytes": model.tensors.bytes,
        "flops_per_token": flops,
        "length": length,
        **model.numbers,
        "groups": [_kind(model, kind, parameters, flops, per_layer) for kind in kinds(model)],
    }


def _kind(model: Model, kind: str, parameters: int, flops: int, per_layer: list[tuple[int, int]]) -> dict[str, Any]:
    """One row: how many units, and what they hold together."""
    found = groups(model, kind)
    counts = [group.units for group in found]
    held = sum(_held(model, group) for group in found)
    attention = sum(attention for _, attention in per_layer) if kind not in ("channels", "experts") else 0
    work = 2 * sum(_held(model, group, matrices=True) for group in found) + attention
    return {
        "kind": kind,
        "meaning": KINDS[kind],  # type: ignore[index]
        "groups": len(found),
        "units": counts[0] if len(set(counts)) == 1 else counts,
        "parameters": held,
        "parameters_share": held / parameters,
        "flops_share": work / flops,
    }


def _held(model: Model, group: Group, *, matrices: bool = False) -> int:
    """Parameters that all of a group's units own together; with `matrices`, of those that are multiplied with."""
    experts = model.numbers.get("experts", 0)

    def size(name: str) -> int:
        return multiplied(model, name, experts) if matrices else prod(model.tensors.info[name].shape)

    if group.whole:
        return sum(size(name) for unit in group.whole for name in unit)
    total = 0
    for piece in group.slices:
        shape = model.tensors.info[piece.name].shape
        positions = shape[piece.dim] * (shape[0] if piece.stacked else 1)
        total += piece.index.numel() * size(piece.name) // positions
    return total
