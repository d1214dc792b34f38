"""The GGUF container: written tensor by tensor, then read again and compared.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. What is read here is what was just written; files
of others are not for this reader.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from torch import Tensor

from prune.errors import PruneError
from prune.model.tensors import Tensors
from prune.progress import Advance

Kind = gguf.GGMLQuantizationType
ALIGNMENT = 32  # bytes, the format's own default
_FIXED = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class Written:
    """One tensor of a file: shape with rows first, type, and sha256 of its bytes."""

    shape: tuple[int, ...]
    kind: Kind
    sha256: str


def write(
    path: Path,
    architecture: str,
    state: Callable[[gguf.GGUFWriter], None],
    tensors: Tensors,
    kinds: Mapping[str, Kind],
    advance: Advance,
) -> None:
    """Write a file, one tensor in memory at a time. `state` adds the keys.

    Raises PruneError when the disk gives back something else, or a value does not fit its type.
    """
    writer = gguf.GGUFWriter(None, architecture)
    state(writer)
    for name, info in tensors.info.items():
        writer.add_tensor_info(name, info.shape, np.dtype(np.float32), size(info.shape, kinds[name]), kinds[name])
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    expected: dict[str, Written] = {}
    try:
        for name, info in tensors.info.items():
            data = _encoded(name, tensors.read(name), kinds[name])
            expected[name] = Written(info.shape, kinds[name], hashlib.sha256(data.data).hexdigest())
            writer.write_tensor_data(data)
            advance()
    finally:
        writer.close()
    if read(path)[1] != expected:
        raise PruneError("the disk gave back other bytes than were written", where=str(path))


def size(shape: tuple[int, ...], kind: Kind) -> int:
    """Bytes of a tensor."""
    block, length = gguf.GGML_QUANT_SIZES[kind]
    count = int(np.prod(shape, dtype=np.int64))
    assert shape[-1] % block == 0, (shape, kind)
    return count // block * length


def _encoded(name: str, tensor: Tensor, kind: Kind) -> np.ndarray:
    values = tensor.detach().contiguous().numpy()
    if kind is Kind.F16:
        with np.errstate(over="ignore"):
            halved = values.astype(np.float16)
        if not np.isfinite(halved).all():
            raise PruneError(f"{name} holds values beyond 65504, which f16 has not; take bf16", where="dtype")
        return halved
    found: np.ndarray = gguf.quants.quantize(values, kind)
    return np.ascontiguousarray(found)


def read(path: Path) -> tuple[dict[str, Any], dict[str, Written]]:
    """The keys and the tensors of a file of ours."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = _Cursor(data)
        magic, version, tensors, keys = cursor.take("4sIQQ")
        if magic != b"GGUF" or version != gguf.GGUF_VERSION:
            raise PruneError("is no GGUF file of ours", where=str(path))
        found = {cursor.text(): cursor.value() for _ in range(keys)}
        infos = [(cursor.text(), cursor.take(f"{cursor.one('I')}Q"), *cursor.take("IQ")) for _ in range(tensors)]
        start = -(-cursor.at // ALIGNMENT) * ALIGNMENT
        view = memoryview(data)
        try:
            return found, {name: _written(view[start:], *rest) for name, *rest in infos}
        finally:
            view.release()


def _written(data: memoryview, dims: tuple[int, ...], kind: int, offset: int) -> Written:
    shape = tuple(reversed(dims))
    with data[offset : offset + size(shape, Kind(kind))] as part:
        found = Written(shape, Kind(kind), hashlib.sha256(part).hexdigest())
    data.release()
    return found


class _Cursor:
    """A place in the bytes of a header."""

    def __init__(self, data: mmap.mmap):
        self.data, self.at = data, 0

    def take(self, form: str) -> tuple[Any, ...]:
        found = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return found

    def one(self, form: str) -> Any:
        return self.take(form)[0]

    def text(self) -> str:
        length = self.one("Q")
        self.at += length
        return self.data[self.at - length : self.at].decode()

    def value(self) -> Any:
        return self._of(self.one("I"))

    def _of(self, kind: int) -> Any:
        if kind == gguf.GGUFValueType.STRING:
            return self.text()
        if kind == gguf.GGUFValueType.ARRAY:
            inner, count = self.take("IQ")
            return [self._of(inner) for _ in range(count)]
        return self.one(_FIXED[kind])
