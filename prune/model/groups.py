"""Groups: what must shrink together, as lists of units, each a set of slices of parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from prune.errors import PruneError, unknown
from prune.model.family import Part, Role, blocks, extents
from prune.model.model import Model

Kind = Literal["heads", "query_heads", "channels", "layers"]
KINDS: dict[Kind, str] = {
    "heads": "key-value heads, each with its query heads",
    "query_heads": "query heads, equally many from every key-value head",
    "channels": "intermediate channels of the MLP",
    "layers": "whole decoder layers",
}


@dataclass(frozen=True)
class Slice:
    """The positions of every unit along one dim of one parameter."""

    name: str
    dim: int
    index: Tensor  # int64 (units, k)
    role: Role


@dataclass(frozen=True)
class Group:
    """Units that may be removed one by one, e.g. "layers.3.heads".

    `partitions` lose units equally. `whole` names each unit's tensors when a unit is not a slice but whole tensors
    (a layer). `layer` is None for a group that spans the model.
    """

    name: str
    kind: str
    layer: int | None
    units: int
    slices: tuple[Slice, ...] = ()
    whole: tuple[tuple[str, ...], ...] = ()
    partitions: tuple[tuple[int, ...], ...] = ()

    @property
    def consumers(self) -> tuple[Slice, ...]:
        """The slices through which the units are read: their inputs are zeroed to mask a unit."""
        return tuple(s for s in self.slices if s.role == "consumer")


def groups(model: Model, what: str | Sequence[str]) -> list[Group]:
    """The groups of one or several kinds, layer by layer.

    Raises PruneError for a kind that does not exist or that the model's family lacks.
    """
    found = []
    for kind in [what] if isinstance(what, str) else list(what):
        if kind not in KINDS:
            raise unknown("kind of group", kind, KINDS)
        if kind != "layers" and _holder(kind) not in model.family.parts:
            raise unknown("kind of group", kind, ["layers", *model.family.parts])
        found.append(_layers(model) if kind == "layers" else _in_layers(model, kind))
    return [group for kind in found for group in kind]


def _holder(kind: str) -> str:
    """The kind whose parts a kind slices."""
    return "heads" if kind == "query_heads" else kind


def _layers(model: Model) -> list[Group]:
    count = model.numbers["layers"]
    whole = tuple(tuple(model.names(layer)) for layer in range(count))
    return [Group("layers", "layers", None, count, whole=whole, partitions=(tuple(range(count)),))]


def _in_layers(model: Model, kind: str) -> list[Group]:
    return [
        layer_group(model.family.parts[_holder(kind)], kind, model.family.layer(i), i, model.sizes(i), model.tensors.info)
        for i in range(model.numbers["layers"])
    ]


def layer_group(
    parts: Iterable[Part],
    kind: str,
    prefix: str,
    layer: int,
    sizes: Mapping[str, int],
    present: Iterable[str],
) -> Group:
    """One layer's group of a kind: the parts, laid out for the layer's `sizes` and named after `prefix`."""
    names = set(present)
    count, per_unit = blocks(kind, sizes)
    slices = []
    for part in parts:
        name = f"{prefix}.{part.tensor}"
        if name not in names and part.optional:
            continue
        index = _index(part.segments, count, tuple(per_unit.items()), tuple(extents(sizes).items()))
        if index.shape[1]:
            slices.append(Slice(name, part.dim, index, part.role))
    partitions: tuple[tuple[int, ...], ...] = (tuple(range(count)),)
    if kind == "query_heads":
        group = sizes["heads"] // sizes["kv_heads"]
        partitions = tuple(tuple(range(g * group, (g + 1) * group)) for g in range(sizes["kv_heads"]))
    return Group(f"layers.{layer}.{kind}", kind, layer, count, tuple(slices), partitions=partitions)


@lru_cache(maxsize=256)
def _index(
    segments: tuple[str, ...], units: int, per_unit: tuple[tuple[str, int], ...], extent: tuple[tuple[str, int], ...]
) -> Tensor:
    """Positions of every unit over consecutive segments: (units, k). Shared between layers of equal sizes."""
    step, length = dict(per_unit), dict(extent)
    columns, offset = [], 0
    for segment in segments:
        width = step.get(segment, 0)
        columns.append(offset + torch.arange(units * width).reshape(units, width))
        offset += length[segment]
    return torch.cat(columns, dim=1)


def by_name(found: Iterable[Group], names: Iterable[str]) -> dict[str, Group]:
    """The named ones among `found`. Raises PruneError for a name that is not there."""
    table = {group.name: group for group in found}
    for name in names:
        if name not in table:
            raise PruneError(unknown("group", name, table).message)
    return {name: table[name] for name in names}
