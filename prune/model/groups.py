"""Groups: what must shrink together, as lists of units, each a set of slices of parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from prune.errors import PruneError, unknown
from prune.model.family import Part, Role, blocks, extents, reason
from prune.model.model import Model

Kind = Literal["heads", "query_heads", "channels", "experts", "layers", "attention", "mlp", "width"]
KINDS: dict[Kind, str] = {
    "heads": "key-value heads, each with its query heads",
    "query_heads": "query heads, equally many from every key-value head",
    "channels": "intermediate channels of the MLP, or of each expert",
    "experts": "experts, each with its row of the router",
    "layers": "whole layers",
    "attention": "the attention of whole layers",
    "mlp": "the MLPs, or mixtures, of whole layers",
    "width": "positions of the hidden state",
}
HALVES = ("attention", "mlp")  # of a layer
GROUPED_ROWS = (
    8  # the grouped matrix product that transformers runs experts with refuses rows of 16-bit numbers otherwise
)


@dataclass(frozen=True)
class Slice:
    """The positions of every unit along one dim of one parameter.

    `stacked` says that dim 0 stacks experts with units of their own: positions then count through `dim` of the first
    expert, on through that of the second, and so forth. `norm_of` names the weight whose outputs a norm runs over.
    """

    name: str
    dim: int
    index: Tensor  # int64 (units, k)
    role: Role
    stacked: bool = False
    norm_of: str = ""


@dataclass(frozen=True)
class Group:
    """Units that may be removed one by one, e.g. "layers.3.heads".

    `partitions` lose units equally. `whole` names each unit's tensors when a unit is not a slice but whole tensors
    (a layer, or half of one); `places` are then the layers they lie in. `layer` is None for a group that spans the
    model. At least `minimum` units must stay, and what stays of
    a partition comes in multiples of `multiple`.
    """

    name: str
    kind: str
    layer: int | None
    units: int
    slices: tuple[Slice, ...] = ()
    whole: tuple[tuple[str, ...], ...] = ()
    partitions: tuple[tuple[int, ...], ...] = ()
    minimum: int = 1
    multiple: int = 1
    places: tuple[int, ...] = ()

    @property
    def consumers(self) -> tuple[Slice, ...]:
        """The slices through which the units are read: their inputs are zeroed to mask a unit."""
        return tuple(s for s in self.slices if s.role == "consumer")


def kinds(model: Model) -> list[str]:
    """The kinds of group that a model has."""
    return [kind for kind in KINDS if _offered(model, kind)]


def _offered(model: Model, kind: str) -> bool:
    if kind == "layers":
        return not any(getattr(model.config, switch, False) for switch in model.family.numbered)
    if kind == "query_heads" and model.numbers["heads"] == model.numbers["kv_heads"]:
        return False  # each is a head of its own
    if kind in HALVES:
        return kind in model.family.sublayers and any(model.has(i, kind) for i in range(model.numbers["layers"]))
    if kind == "width":
        return model.family.stream is not None
    return _holder(kind) in model.family.parts


def groups(model: Model, what: str | Sequence[str]) -> list[Group]:
    """The groups of one or several kinds, layer by layer.

    Raises PruneError for a kind that does not exist or that the model lacks.
    """
    found = []
    for kind in [what] if isinstance(what, str) else list(what):
        if kind not in KINDS:
            raise unknown("kind of group", kind, KINDS)
        if not _offered(model, kind):
            raise _refusal(model, kind)
        spanning = {"layers": _layers, "attention": _halves, "mlp": _halves, "width": _width}
        found.append(spanning[kind](model, kind) if kind in spanning else _in_layers(model, kind))
    return [group for kind in found for group in kind]


def _refusal(model: Model, kind: str) -> PruneError:
    why, choices = reason(model.family, kind), ", ".join(kinds(model))
    return PruneError(f"{model.family.model_type} has no {kind} to remove: {why} (choices: {choices})")


def _holder(kind: str) -> str:
    """The kind whose parts a kind slices."""
    return "heads" if kind == "query_heads" else kind


def _layers(model: Model, kind: str) -> list[Group]:
    count, encoder = model.numbers["layers"], model.numbers.get("encoder_layers", 0)
    whole = tuple(tuple(model.names(layer)) for layer in range(count))
    stacks: tuple[tuple[int, ...], ...] = (tuple(range(count)),)
    if 2 * encoder == count:  # as many of each, or generation with a cache fails
        stacks = (tuple(range(encoder)), tuple(range(encoder, count)))
    least, places = 2 if encoder else 1, tuple(range(count))
    return [Group(kind, kind, None, count, whole=whole, partitions=stacks, minimum=least, places=places)]


def _halves(model: Model, kind: str) -> list[Group]:
    """The attentions, or the MLPs, that are there."""
    places = tuple(layer for layer in range(model.numbers["layers"]) if model.has(layer, kind))
    whole = tuple(tuple(model.half(layer, kind)) for layer in places)
    units = len(places)
    return [Group(kind, kind, None, units, whole=whole, partitions=(tuple(range(units)),), places=places)]


def _width(model: Model, kind: str) -> list[Group]:
    """Every dim of every parameter that runs along the hidden state."""
    units = model.numbers["width"]
    index = torch.arange(units)[:, None]
    found = [Slice(name, dim, index, role) for name, dim, role in stream(model)]
    assert all(model.tensors.info[piece.name].shape[piece.dim] == units for piece in found), found
    return [Group(kind, kind, None, units, tuple(found), partitions=(tuple(range(units)),))]


def stream(model: Model) -> list[tuple[str, int, Role]]:
    """The tensors that run along the hidden state, each with the dim that does and whether it writes or reads it."""
    own = model.family.stream
    assert own is not None, model.family.model_type
    outer: list[tuple[str, int, Role]] = [
        (f"{own.embedding}.weight", 1, "producer"),
        (f"{own.head}.weight", 1, "consumer"),
        (f"{own.final}.weight", 0, "follower"),
    ]
    inner = _along_stream(model)
    inside = [
        (f"{model.layer(i)}.{leaf}", dim, role) for i in range(model.numbers["layers"]) for leaf, dim, role in inner
    ]
    return [entry for entry in (*outer, *inside) if entry[0] in model.tensors.info]


def _along_stream(model: Model) -> list[tuple[str, int, Role]]:
    """The same for the tensors of any layer, by their names there."""
    own = model.family.stream
    assert own is not None, model.family.model_type
    found: dict[str, tuple[int, Role]] = {f"{norm}.weight": (0, "follower") for norm in own.norms}
    found |= {leaf: (dim, "consumer" if dim else "producer") for leaf, dim in own.others}
    for part in (part for kind, parts in model.family.parts.items() for part in parts if not part.norm_of):
        if not part.tensor.endswith(".bias") and part.role != "follower":  # the other dim of a matrix
            reads = part.role in ("producer", "router")
            found[part.tensor] = (3 - part.dim if part.stacked else 1 - part.dim, "consumer" if reads else "producer")
            if not reads:
                found[part.tensor.removesuffix("weight") + "bias"] = (0, "producer")
    return [(leaf, dim, role) for leaf, (dim, role) in found.items()]


def _in_layers(model: Model, kind: str) -> list[Group]:
    parts, present = model.family.parts[_holder(kind)], model.tensors.info
    found = [
        layer_group(parts, kind, model.layer(i), i, model.sizes(i), present, routed=model.numbers.get("routed", 1))
        for i in range(model.numbers["layers"])
    ]
    return [group for group in found if group.units]  # a layer of a mixture may have no experts


def layer_group(
    parts: Iterable[Part],
    kind: str,
    prefix: str,
    layer: int,
    sizes: Mapping[str, int],
    present: Iterable[str],
    *,
    routed: int = 1,
) -> Group:
    """One layer's group of a kind: the parts, laid out for the layer's `sizes` and named after `prefix`.

    `routed` is how many experts each token goes to.
    """
    names = set(present)
    count, per_unit = blocks(kind, sizes)
    slices = []
    for part in parts:
        name = f"{prefix}.{part.tensor}"
        if name not in names and part.optional:
            continue
        stack = sizes["experts"] if part.stacked else 1
        index = _index(part.segments, count // stack, stack, tuple(per_unit.items()), tuple(extents(sizes).items()))
        if index.shape[1]:
            norm_of = f"{prefix}.{part.norm_of}" if part.norm_of else ""
            slices.append(Slice(name, part.dim, index, part.role, part.stacked, norm_of))
    minimum = routed if kind == "experts" else 1
    multiple = GROUPED_ROWS if any(piece.stacked for piece in slices) else 1
    return Group(
        f"layers.{layer}.{kind}",
        kind,
        layer,
        count,
        tuple(slices),
        partitions=_parts(kind, count, sizes),
        minimum=minimum,
        multiple=multiple,
    )


def _parts(kind: str, units: int, sizes: Mapping[str, int]) -> tuple[tuple[int, ...], ...]:
    """What loses units equally: the query heads of each key-value head, the channels of each expert."""
    count = 1
    if kind == "query_heads":
        count = sizes["kv_heads"]
    elif kind == "channels" and sizes["experts"]:
        count = sizes["experts"]
    each = units // max(count, 1)
    return tuple(tuple(range(i * each, (i + 1) * each)) for i in range(count))


@lru_cache(maxsize=256)
def _index(
    segments: tuple[str, ...],
    units: int,
    stack: int,
    per_unit: tuple[tuple[str, int], ...],
    extent: tuple[tuple[str, int], ...],
) -> Tensor:
    """Positions of every unit over consecutive segments: (stack x units, k). Shared between layers of equal sizes."""
    step, length = dict(per_unit), dict(extent)
    columns, offset = [], 0
    for segment in segments:
        width = step.get(segment, 0)
        columns.append(offset + torch.arange(units * width).reshape(units, width))
        offset += length[segment]
    one = torch.cat(columns, dim=1)
    return torch.cat([one + expert * offset for expert in range(stack)])


def within(group: Group, layer: int, root: str) -> Group | None:
    """What of a group lies in the layer at the path `root`: all, none, or those slices of one that spans the model."""
    if group.layer is not None or not group.slices:
        return group if group.layer == layer else None
    own = tuple(piece for piece in group.slices if piece.name.startswith(root + "."))
    return replace(group, slices=own)


def along(piece: Slice, tensor: Tensor) -> Tensor:
    """The sum of a tensor over everything but the positions that a slice counts: float32 (positions,) on the CPU."""
    kept = (0, piece.dim) if piece.stacked else (piece.dim,)
    others = [dim for dim in range(tensor.ndim) if dim not in kept]
    tensor = tensor.float()
    return (tensor.sum(others) if others else tensor).reshape(-1).cpu()


def by_name(found: Iterable[Group], names: Iterable[str]) -> dict[str, Group]:
    """The named ones among `found`. Raises PruneError for a name that is not there."""
    table = {group.name: group for group in found}
    for name in names:
        if name not in table:
            raise PruneError(unknown("group", name, table).message)
    return {name: table[name] for name in names}
