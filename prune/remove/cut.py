"""Cutting: a plan's removed units are sliced out of every parameter that belongs to them, and the config says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from prune.errors import PruneError, unknown
from prune.model import config as configs
from prune.model.groups import HALVES, KINDS, Group, by_name, groups
from prune.model.model import Model
from prune.model.nonuniform import HELD
from prune.model.tensors import Edit, edited
from prune.remove import stream
from prune.remove.norms import factor

Plan = dict[str, list[int]]  # kept units per group name, ascending
Factor = tuple[Callable[[], float], float]  # what a tensor is multiplied by, and its offset: see Edit
PARTITIONS = {
    "query_heads": "every key-value head must keep as many query heads,",
    "channels": "every expert must keep as many channels,",
}


def cut(model: Model, plan: Mapping[str, Sequence[int]]) -> Model:
    """A new model without the units that `plan` does not keep; the input is unchanged and nothing is read yet.

    `plan` maps group names ("layers.3.heads", "layers") to kept units; groups it does not name stay whole. The
    result is stock where a stock config carries its shapes. Raises PruneError for a plan that does not fit the model.
    """
    found = checked(model, plan)
    kept = layers(model, plan)
    gone = halves(model, plan)
    sizes = [_sizes(model, layer, plan, gone.get(layer, [])) for layer in kept]
    config, architecture = configs.shaped(model, kept, sizes, len(plan.get("width", range(model.numbers["width"]))))
    factors = {**_factors(model, found, plan), **stream.factors(model, plan)}
    edits = dict(_edits(model, kept, gone, positions(model, found, plan), factors))
    return replace(model, config=config, architecture=architecture, tensors=edited(model.tensors, edits), energies={})


def layers(model: Model, plan: Mapping[str, Sequence[int]]) -> list[int]:
    """The layers that stay: those that the plan keeps and that keep anything but their way past."""
    kept = plan.get("layers", range(model.numbers["layers"]))
    gone = halves(model, plan)

    def empty(layer: int) -> bool:
        return all(half in gone.get(layer, ()) or not model.has(layer, half) for half in HALVES)

    return [layer for layer in kept if not empty(layer)]


def halves(model: Model, plan: Mapping[str, Sequence[int]]) -> dict[int, list[str]]:
    """Layer -> which of "attention" and "mlp" the plan takes from it."""
    gone: dict[int, list[str]] = {}
    for kind in (kind for kind in HALVES if kind in plan):
        places = [layer for layer in range(model.numbers["layers"]) if model.has(layer, kind)]
        for layer in set(places) - {places[unit] for unit in plan[kind]}:
            gone.setdefault(layer, []).append(kind)
    return gone


def checked(model: Model, plan: Mapping[str, Sequence[int]]) -> dict[str, Group]:
    """The groups a plan names, after it was found to keep something, equally, of each."""
    kinds = {name.rsplit(".", 1)[-1] for name in plan}
    for kind in kinds - set(KINDS):
        raise PruneError(unknown("kind of group in the plan", kind, KINDS).message)
    found = by_name(groups(model, sorted(kinds)), plan) if kinds else {}
    for name, group in found.items():
        kept = list(plan[name])
        if kept != sorted(set(kept)) or not all(type(u) is int and 0 <= u < group.units for u in kept):
            raise PruneError(f"kept units must be ascending whole numbers from 0 to {group.units - 1}", where=name)
        counts = {len(set(kept) & set(partition)) for partition in group.partitions}
        if 0 in counts or len(kept) < group.minimum:
            raise PruneError(f"a plan must keep at least {max(group.minimum, len(group.partitions))}", where=name)
        if len(kept) < group.units and min(counts) % group.multiple:
            raise PruneError(f"kept units of each expert must be a multiple of {group.multiple}", where=name)
        if len(counts) > 1 and group.kind in PARTITIONS:
            raise PruneError(f"{PARTITIONS[group.kind]} not {sorted(counts)}", where=name)
    return found


def positions(
    model: Model, found: Mapping[str, Group], plan: Mapping[str, Sequence[int]]
) -> dict[str, dict[int, Tensor]]:
    """Kept positions per tensor and dim: those that no removed unit owns."""
    masks: dict[tuple[str, int], Tensor] = {}
    for name, group in found.items():
        removed = _removed(group, plan[name])
        for piece in group.slices if removed else ():
            shape = model.tensors.info[piece.name].shape
            new = torch.ones(shape[0] if piece.stacked else 1, shape[piece.dim], dtype=torch.bool)
            mask = masks.setdefault((piece.name, piece.dim), new)  # (experts or 1, positions)
            mask.view(-1)[piece.index[removed].reshape(-1)] = False
    keep: dict[str, dict[int, Tensor]] = {}
    for (name, dim), mask in masks.items():
        kept = mask.nonzero()[:, 1].reshape(len(mask), -1)  # partitions lose equally, so rows are as long
        keep.setdefault(name, {})[dim] = kept if len(mask) > 1 else kept[0]
    return keep


def _removed(group: Group, kept: Sequence[int]) -> list[int]:
    return sorted(set(range(group.units)) - set(kept))


def _factors(model: Model, found: Mapping[str, Group], plan: Mapping[str, Sequence[int]]) -> dict[str, Factor]:
    """Norm weight -> what it is multiplied by, measured when it is read."""
    removed: dict[str, list[Tensor]] = {}
    pieces = {}
    for name, group in found.items():
        units = _removed(group, plan[name])
        for piece in group.slices if units else ():
            if piece.norm_of:
                pieces[piece.name] = piece
                removed.setdefault(piece.name, []).append(piece.index[units].reshape(-1))
    return {
        name: (partial(factor, model, piece, torch.cat(removed[name]).unique()), 0.0) for name, piece in pieces.items()
    }


def _sizes(model: Model, layer: int, plan: Mapping[str, Sequence[int]], gone: Sequence[str]) -> dict[str, int]:
    """What is left of one layer, with the halves in `gone` taken from it."""
    sizes = model.sizes(layer)
    group = sizes["heads"] // max(sizes["kv_heads"], 1)
    kv_heads = set(plan.get(f"layers.{layer}.heads", range(sizes["kv_heads"])))
    queries = set(plan.get(f"layers.{layer}.query_heads", range(sizes["heads"])))
    heads = sum(1 for query in queries if query // group in kv_heads) if group else 0
    left = {**sizes, "heads": heads, "kv_heads": len(kv_heads)}
    channels = plan.get(f"layers.{layer}.channels")
    if channels is not None and sizes["experts"]:
        left["expert_channels"] = len(channels) // sizes["experts"]
    elif channels is not None:
        left["channels"] = len(channels)
    left["experts"] = len(plan.get(f"layers.{layer}.experts", range(sizes["experts"])))
    return {**left, **{number: 0 for half in gone for number in (half, *HELD[half])}}


def _edits(
    model: Model,
    layers: Sequence[int],
    gone: Mapping[int, Sequence[str]],
    keep: Mapping[str, Mapping[int, Tensor]],
    factors: Mapping[str, Factor],
) -> Iterator[tuple[str, Edit]]:
    """New tensor name -> where it comes from: layers are renumbered, everything else keeps its name."""

    def edit(name: str) -> Edit:
        return Edit(name, keep.get(name, {}), *factors.get(name, ()))

    inside = {name for layer in range(model.numbers["layers"]) for name in model.names(layer)}
    for name in model.tensors.info:
        if name not in inside:
            yield name, edit(name)
    for old, new in configs.renumbered(model, layers).items():
        left = {name for half in gone.get(old, ()) for name in model.half(old, half)}
        for name in model.names(old):
            if name not in left:
                yield new + name.removeprefix(model.layer(old)), edit(name)
    for name, new in _moved(model, layers).items():
        yield new, edit(name)


def _moved(model: Model, layers: Sequence[int]) -> dict[str, str]:
    """Tensors that only a stack's first layer holds -> their name in the layer that is first now."""
    paths = configs.renumbered(model, layers)
    moved = {}
    for stack in configs.stacks(model):
        first = next(layer for layer in layers if layer in stack)
        for leaf in model.family.leading if first != stack[0] else ():
            moved[f"{model.layer(stack[0])}.{leaf}"] = f"{paths[first]}.{leaf}"
    return moved
