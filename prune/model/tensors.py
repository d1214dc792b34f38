"""Named tensors that are read when asked for: a checkpoint on disk, a module in memory, or a cut of either."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite, prod

import torch
from torch import Tensor, nn

from prune.errors import PruneError

Part = Callable[[int, int], Tensor]
PIECE = 2**19  # entries of a tensor that are read at a time


@dataclass(frozen=True)
class Info:
    """What a tensor is, known without reading it."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Tensors:
    """Names with shapes and dtypes (`info`), and a function that reads one of them onto the CPU (`read`).

    `read` and `parts` give tensors that the caller must not change in place: they may be the user's own.
    """

    info: Mapping[str, Info]
    read: Callable[[str], Tensor]
    flat: Callable[[str], Part] | None = None  # reads a part of a tensor without the rest, where that can be
    threads: int = 1  # how many tensors may be read at once: more than one where reading is computing
    stream: Callable[[str], Iterator[Tensor]] | None = None  # gives a tensor piece by piece, where that can be

    def pieces(self, name: str) -> Iterator[Tensor]:
        """A tensor laid out flat, in consecutive pieces: where it can be read so, the whole is never held."""
        if self.stream:
            yield from self.stream(name)
        elif self.flat:
            part, entries = self.flat(name), prod(self.info[name].shape)
            yield from (part(start, min(start + PIECE, entries)) for start in range(0, entries, PIECE))
        else:
            yield self.read(name).reshape(-1)

    def parts(self, name: str) -> Part:
        """A function that reads entries [start, stop) of a tensor laid out flat, in the stored type."""
        return self.flat(name) if self.flat else _parts_of(self.read(name))

    @property
    def parameters(self) -> int:
        return sum(prod(info.shape) for info in self.info.values())

    @property
    def bytes(self) -> int:
        return sum(info.bytes for info in self.info.values())

    def largest(self) -> int:
        """Bytes of the largest tensor."""
        return max((info.bytes for info in self.info.values()), default=0)


@dataclass(frozen=True)
class Edit:
    """How one tensor of a cut follows from one of the original: positions kept along some dims, then a factor.

    Positions are int64 (kept,), or (n, kept) when each of the n entries along dim 0 keeps its own. A factor that has
    to be measured on other tensors is a function, called when the tensor is read.
    """

    source: str
    keep: Mapping[int, Tensor]  # dim -> positions
    scale: float | Callable[[], float] = 1.0
    offset: float = 0.0  # added before the factor and taken off after it: a norm's weight may stand for (1 + weight)

    @property
    def plain(self) -> bool:
        """Whether it is the original under another name."""
        return not self.keep and not callable(self.scale) and self.scale == 1.0

    def shape(self, before: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(self.keep[dim].shape[-1] if dim in self.keep else size for dim, size in enumerate(before))

    def __call__(self, tensor: Tensor) -> Tensor:
        for dim, positions in sorted(self.keep.items(), reverse=True):  # entries of dim 0 go last: others refer to them
            positions = positions.to(tensor.device)
            tensor = tensor.index_select(dim, positions) if positions.ndim == 1 else _each(tensor, dim, positions)
        scale = self.scale() if callable(self.scale) else self.scale
        if scale == 1.0:
            return tensor
        return ((tensor.float() + self.offset) * scale - self.offset).to(tensor.dtype)


def _each(tensor: Tensor, dim: int, positions: Tensor) -> Tensor:
    """Each entry of dim 0 with positions of its own along `dim`."""
    return torch.stack([own.index_select(dim - 1, kept) for own, kept in zip(tensor, positions, strict=True)])


def edited(tensors: Tensors, edits: Mapping[str, Edit]) -> Tensors:
    """A view of `tensors` whose names and values follow `edits` (new name -> edit); nothing is read until asked for."""
    info = {
        name: Info(edit.shape(tensors.info[edit.source].shape), tensors.info[edit.source].dtype)
        for name, edit in edits.items()
    }

    def read(name: str) -> Tensor:
        return edits[name](tensors.read(edits[name].source))

    def flat(name: str) -> Part:
        edit = edits[name]
        return tensors.parts(edit.source) if edit.plain else _parts_of(read(name))

    def stream(name: str) -> Iterator[Tensor]:
        edit = edits[name]
        if edit.plain:
            yield from tensors.pieces(edit.source)
        else:
            yield read(name).reshape(-1)

    return Tensors(info, read, flat, tensors.threads, stream)


def _parts_of(tensor: Tensor) -> Part:
    entries = tensor.reshape(-1)
    return lambda start, stop: entries[start:stop]


def in_memory(module: nn.Module) -> Tensors:
    """The tensors of a module, shared with it; tied parameters once, under the name that comes first."""
    state: dict[str, Tensor] = {}
    seen: set[tuple[int, torch.Size]] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if (id(tensor), tensor.shape) not in seen:
            seen.add((id(tensor), tensor.shape))
            state[name] = tensor.detach()
    return Tensors({name: Info(tuple(t.shape), t.dtype) for name, t in state.items()}, state.__getitem__)


def finite(name: str, tensor: Tensor, where: str) -> Tensor:
    """The tensor itself, refused by name when it holds NaN or infinity."""
    if tensor.numel() and tensor.is_floating_point():
        low, high = torch.aminmax(tensor)  # NaN goes through both; no copy is made
        if not (isfinite(low) and isfinite(high)):
            raise PruneError(f"tensor {name!r} holds NaN or infinity; the checkpoint is damaged", where=where)
    return tensor
