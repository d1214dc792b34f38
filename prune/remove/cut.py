"""Cutting: a plan's removed units are sliced out of every parameter that belongs to them, and the config says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from prune.errors import PruneError, unknown
from prune.model import config as configs
from prune.model.groups import KINDS, Group, by_name, groups
from prune.model.model import Model
from prune.model.tensors import Edit, edited

Plan = dict[str, list[int]]  # kept units per group name, ascending


def cut(model: Model, plan: Mapping[str, Sequence[int]]) -> Model:
    """A new model without the units that `plan` does not keep; the input is unchanged and nothing is read yet.

    `plan` maps group names ("layers.3.heads", "layers") to kept units; groups it does not name stay whole. The
    result is stock where a stock config carries its shapes. Raises PruneError for a plan that does not fit the model.
    """
    found = _check(model, plan)
    kept_layers = list(plan.get("layers", range(model.numbers["layers"])))
    keep = _positions(model, found, plan)
    sizes = [_sizes(model, layer, plan) for layer in kept_layers]
    config, architecture = configs.shaped(model, kept_layers, sizes)
    edits = dict(_edits(model, kept_layers, keep))
    return replace(
        model, config=config, architecture=architecture, tensors=edited(model.tensors, edits), weights=model.weights
    )


def _check(model: Model, plan: Mapping[str, Sequence[int]]) -> dict[str, Group]:
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
        if 0 in counts:
            raise PruneError("a plan must keep at least one unit", where=name)
        if len(counts) > 1:
            raise PruneError(f"every key-value head must keep as many query heads, not {sorted(counts)}", where=name)
    return found


def _positions(model: Model, found: Mapping[str, Group], plan: Mapping[str, Sequence[int]]) -> dict[str, dict[int, Tensor]]:
    """Kept positions per tensor and dim: those that no removed unit owns."""
    masks: dict[tuple[str, int], Tensor] = {}
    for name, group in found.items():
        removed = sorted(set(range(group.units)) - set(plan[name]))
        if not removed:
            continue
        for piece in group.slices:
            size = model.tensors.info[piece.name].shape[piece.dim]
            mask = masks.setdefault((piece.name, piece.dim), torch.ones(size, dtype=torch.bool))
            mask[piece.index[removed].reshape(-1)] = False
    keep: dict[str, dict[int, Tensor]] = {}
    for (name, dim), mask in masks.items():
        keep.setdefault(name, {})[dim] = mask.nonzero().squeeze(1)
    return keep


def _sizes(model: Model, layer: int, plan: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """What is left of one layer."""
    sizes = model.sizes(layer)
    group = sizes["heads"] // max(sizes["kv_heads"], 1)
    kv_heads = set(plan.get(f"layers.{layer}.heads", range(sizes["kv_heads"])))
    queries = set(plan.get(f"layers.{layer}.query_heads", range(sizes["heads"])))
    channels = plan.get(f"layers.{layer}.channels", range(sizes["channels"]))
    heads = sum(1 for query in queries if query // group in kv_heads) if group else 0
    return {**sizes, "heads": heads, "kv_heads": len(kv_heads), "channels": len(channels)}


def _edits(model: Model, layers: Sequence[int], keep: Mapping[str, Mapping[int, Tensor]]) -> Iterator[tuple[str, Edit]]:
    """New tensor name -> where it comes from: layers are renumbered, everything else keeps its name."""
    number = {old: new for new, old in enumerate(layers)}
    prefix = model.family.layers + "."
    for name in model.tensors.info:
        new = name
        if name.startswith(prefix):
            old, rest = name.removeprefix(prefix).split(".", 1)
            if int(old) not in number:
                continue
            new = f"{prefix}{number[int(old)]}.{rest}"
        yield new, Edit(name, keep.get(name, {}))
