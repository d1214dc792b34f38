"""Checkpoints that name or cut up their tensors otherwise than the module does, in both directions.

The module's names hold everywhere in the package. On disk stands what stock transformers writes, so that whatever read
the original reads the cut one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import lru_cache, partial

import torch
from torch import Tensor

from prune.errors import PruneError
from prune.model.family import Family, Stored
from prune.model.model import Model
from prune.model.tensors import Info, Part, Tensors

LEGACY = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))  # checkpoints of BERT's days
HELD = 2  # merged tensors held while their experts are written one by one: gate_up_proj and down_proj


def as_module(tensors: Tensors, family: Family, wanted: Collection[str], prefix: str) -> Tensors:
    """A checkpoint's tensors under the names of `wanted`, the module's; experts stacked. Nothing is read yet.

    Names that the module has are left alone; `prefix` is what checkpoints of the bare base model leave out. Raises
    PruneError when an expert is missing.
    """
    names = {_module_name(name, family.stored, wanted, prefix): name for name in tensors.info}
    info = {new: tensors.info[name] for new, name in names.items()}
    found = Tensors(info, lambda name: tensors.read(names[name]), lambda name: tensors.parts(names[name]))
    return _stacked(found, _experts(info, family.stored, wanted))


def _module_name(name: str, stored: Stored, wanted: Collection[str], prefix: str) -> str:
    if name in wanted:
        return name
    for before, after in (*LEGACY, *stored.renames):
        name = name.replace(before, after)
    return f"{prefix}.{name}" if f"{prefix}.{name}" in wanted else name


def _experts(info: Mapping[str, Info], stored: Stored, wanted: Collection[str]) -> dict[str, list[list[str]]]:
    """Merged tensor -> for each expert the tensors that lie in it, one below the other."""
    merged = {}
    for leaf, pieces in stored.merged.items():
        for name in wanted:
            if name.endswith("." + leaf) and name not in info:
                start = name.removesuffix(leaf)
                count = _count(info, start + pieces[0])
                merged[name] = [[start + piece.format(expert) for piece in pieces] for expert in range(count)]
    return {name: experts for name, experts in merged.items() if experts}


def _count(info: Mapping[str, Info], pattern: str) -> int:
    count = 0
    while pattern.format(count) in info:
        count += 1
    return count


def _stacked(tensors: Tensors, merged: Mapping[str, list[list[str]]]) -> Tensors:
    """A view in which the experts' tensors are stacked along a new dim 0."""
    gone = {piece for experts in merged.values() for pieces in experts for piece in pieces}
    info = {name: found for name, found in tensors.info.items() if name not in gone}
    for name, experts in merged.items():
        shapes = {tuple(_info(tensors, piece).shape for piece in pieces) for pieces in experts}
        if len(shapes) > 1:
            raise PruneError(f"the experts of {name!r} differ in shape: {sorted(shapes)}")
        (pieces,) = shapes
        first = tensors.info[experts[0][0]]
        info[name] = Info((len(experts), sum(shape[0] for shape in pieces), *first.shape[1:]), first.dtype)

    def read(name: str) -> Tensor:
        if name not in merged:
            return tensors.read(name)
        return torch.stack([torch.cat([tensors.read(piece) for piece in pieces]) for pieces in merged[name]])

    def flat(name: str) -> Part:
        if name not in merged:
            return tensors.parts(name)
        whole = read(name).reshape(-1)
        return lambda start, stop: whole[start:stop]

    return Tensors(info, read, flat)


def _info(tensors: Tensors, name: str) -> Info:
    if name not in tensors.info:
        raise PruneError(f"config and weights disagree: the checkpoint lacks tensor {name!r}")
    return tensors.info[name]


def as_stored(model: Model) -> Tensors:
    """The model's tensors as stock transformers stores them. Nothing is read yet.

    A checkpoint whose layers differ keeps the module's names: transformers converts nothing for classes of ours.
    """
    stored = model.family.stored
    if not model.uniform:
        return model.tensors
    info: dict[str, Info] = {}
    reads: dict[str, Callable[[], Tensor]] = {}
    streams: dict[str, Callable[[], Iterator[Tensor]]] = {}
    held = lru_cache(maxsize=HELD)(model.tensors.read)
    for name, found in model.tensors.info.items():
        leaf = next((leaf for leaf in stored.merged if name.endswith("." + leaf)), None)
        if leaf is None:
            info[stored_name(name, stored)] = found
            reads[stored_name(name, stored)] = partial(model.tensors.read, name)
            streams[stored_name(name, stored)] = partial(model.tensors.pieces, name)
            continue
        pieces = stored.merged[leaf]
        rows = found.shape[1] // len(pieces)
        for expert in range(found.shape[0]):
            for number, piece in enumerate(pieces):
                new = stored_name(name.removesuffix(leaf) + piece.format(expert), stored)
                info[new] = Info((rows, *found.shape[2:]), found.dtype)
                reads[new] = partial(_expert, held, name, expert, number * rows, rows)
    threads = 1 if stored.merged else model.tensors.threads  # what is held for the experts is for one reader

    def stream(name: str) -> Iterator[Tensor]:
        yield from streams[name]() if name in streams else [reads[name]().reshape(-1)]

    return Tensors(info, lambda name: reads[name](), threads=threads, stream=stream)


def _expert(read: Callable[[str], Tensor], name: str, expert: int, start: int, rows: int) -> Tensor:
    return read(name)[expert, start : start + rows]


def stored_name(name: str, stored: Stored) -> str:
    """The name on disk of a tensor that the module calls `name`."""
    for before, after in reversed(stored.renames):
        name = name.replace(after, before)
    return name
