"""Safetensors on disk: strict lazy reading of a folder's shards, and streamed writing of new ones."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prune.errors import PruneError
from prune.model.tensors import Info, Tensors, ahead, finite

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER = 64 * 1024**2  # bytes; a 100 MB header costs seconds to parse
MAX_TENSORS = 1_000_000
PIECE = 8 * 1024**2  # bytes written, read back and hashed at a time


@dataclass(frozen=True)
class Entry:
    """Where one tensor's bytes lie."""

    path: Path
    offset: int
    info: Info


def read_folder(folder: Path) -> Tensors:
    """The tensors of a folder's safetensors, sharded or not; headers are checked now, weights are read when asked for.

    Raises PruneError for a missing or foreign shard, a damaged header, a truncated file, and (when read) for weights
    that are not finite. Source of the format: https://github.com/huggingface/safetensors#format
    """
    entries: dict[str, Entry] = {}
    for path, expected in _shards(folder):
        found = read_header(path)
        if expected is not None and set(found) != expected:
            odd = sorted(set(found) ^ expected)[0]
            raise PruneError(f"the index and the shard disagree about tensor {odd!r}", where=str(path))
        entries.update(found)
    return Tensors(
        {name: entry.info for name, entry in entries.items()},
        lambda name: read_entry(name, entries[name]),
        lambda name: partial(_read_part, name, entries[name]),
    )


def read_header(path: Path) -> dict[str, Entry]:
    """The checked header of one safetensors file: tensor name -> entry. Raises PruneError when anything is off."""
    where = str(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER):
            raise PruneError(f"not a whole safetensors file: header of {length} bytes in {size}", where=where)
        raw = file.read(length)
    header = _parse(raw, where)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise PruneError("damaged safetensors header: __metadata__ must map names to text", where=where)
    if len(header) > MAX_TENSORS:
        raise PruneError(f"{len(header)} tensors; at most {MAX_TENSORS} are read", where=where)
    entries = {name: _entry(path, name, spec, 8 + length) for name, spec in header.items()}
    _check_layout(entries, 8 + length, size, where)
    return entries


def _parse(raw: bytes, where: str) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise PruneError("the header names a tensor twice", where=where)
        return dict(pairs)

    try:
        header = json.loads(raw, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise PruneError(f"damaged safetensors header: {' '.join(str(error).split())[:200]}", where=where) from error
    if not isinstance(header, dict) or raw[:1] != b"{":
        raise PruneError("damaged safetensors header: not a mapping", where=where)
    return header


def _entry(path: Path, name: str, spec: object, start: int) -> Entry:
    where = str(path)
    if not name or not name.isprintable() or "/" in name or "\\" in name:
        raise PruneError(f"refused tensor name {name!r}", where=where)
    if not isinstance(spec, dict) or set(spec) != {"dtype", "shape", "data_offsets"}:
        raise PruneError(f"damaged header entry of tensor {name!r}", where=where)
    if not isinstance(spec["dtype"], str) or spec["dtype"] not in DTYPES:
        raise PruneError(
            f"tensor {name!r} has dtype {spec['dtype']!r}; choices: {', '.join(DTYPES)}"
            " (a quantised checkpoint cannot be pruned: take the full-precision one)",
            where=where,
        )
    numbers = [*spec["shape"], *spec["data_offsets"]] if _lists(spec) else [None]
    if len(numbers) != len(spec["shape"]) + 2 or not all(type(n) is int and 0 <= n < 2**62 for n in numbers):
        raise PruneError(f"damaged header entry of tensor {name!r}", where=where)
    info = Info(tuple(spec["shape"]), DTYPES[spec["dtype"]])
    begin, end = spec["data_offsets"]
    if end - begin != info.bytes:
        raise PruneError(f"tensor {name!r} of shape {list(info.shape)} cannot have {end - begin} bytes", where=where)
    return Entry(path, start + begin, info)


def _lists(spec: dict[str, Any]) -> bool:
    return isinstance(spec["shape"], list) and isinstance(spec["data_offsets"], list)


def _check_layout(entries: dict[str, Entry], start: int, size: int, where: str) -> None:
    """Tensors must fill the file end to end, without holes or overlaps, as the format demands."""
    at = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].info.bytes)):
        if entry.offset != at:
            raise PruneError(f"tensor {name!r} overlaps another or leaves a hole", where=where)
        at += entry.info.bytes
    if at != size:
        state = "truncated" if at > size else "longer than its header says"
        raise PruneError(f"the file is {state}: {size} bytes, the header says {at}", where=where)


def _shards(folder: Path) -> list[tuple[Path, set[str] | None]]:
    """Each shard's path with the tensor names the index gives it (None without an index)."""
    index = folder / INDEX
    if not index.exists():
        return [(_regular(folder, SINGLE), None)]
    if (folder / SINGLE).exists():
        raise PruneError(f"holds both {SINGLE} and {INDEX}; take away the one that is stale", where=str(folder))
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        assert isinstance(weight_map, dict), weight_map
    except (ValueError, KeyError, TypeError, AssertionError, RecursionError) as error:
        raise PruneError("not a shard index: no readable 'weight_map'", where=str(index)) from error
    shards: dict[str, set[str]] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise PruneError(f"shard {file!r} is not a plain .safetensors name in this folder", where=str(index))
        shards.setdefault(file, set()).add(name)
    return [(_regular(folder, file), names) for file, names in sorted(shards.items())]


def _regular(folder: Path, name: str) -> Path:
    """A regular file of the folder. A link may lead only to a blob of the same Hub cache."""
    path = folder / name
    if not path.is_file():
        others = sorted(p.name for p in folder.glob("*") if p.suffix in {".bin", ".pt", ".pth", ".ckpt"})
        only = f"; {others[0]} is a pickle, which is never read: convert it to safetensors" if others else ""
        raise PruneError(f"no file {name!r} in the model folder{only}", where=str(folder))
    if path.is_symlink():
        blobs = (folder.parent.parent / "blobs").resolve()
        if path.resolve().parent != blobs:
            raise PruneError(f"{name!r} is a link that leaves the model folder", where=str(folder))
    return path


def read_entry(name: str, entry: Entry) -> Tensor:
    """One tensor of a file whose header was read. Raises PruneError when it is not finite."""
    return _read_part(name, entry, 0, prod(entry.info.shape)).reshape(entry.info.shape)


def _read_part(name: str, entry: Entry, start: int, stop: int) -> Tensor:
    """Entries [start, stop) of a tensor laid out flat."""
    width = entry.info.dtype.itemsize
    buffer = torch.empty((stop - start) * width, dtype=torch.uint8)
    if len(buffer):
        with entry.path.open("rb", buffering=0) as file:
            file.seek(entry.offset + start * width)
            _fill(file, memoryview(buffer.numpy()), entry.path)  # type: ignore[arg-type]
    return finite(name, buffer.view(entry.info.dtype), str(entry.path))


def _fill(file: Any, view: memoryview, path: Path) -> None:
    at = 0
    while at < len(view):
        count = file.readinto(view[at:])
        if not count:
            raise PruneError("the file was truncated while it was read", where=str(path))
        at += count


def write_folder(tensors: Tensors, folder: Path, *, shard_bytes: int = 4 * 1024**3) -> dict[str, str]:
    """Write all tensors as safetensors into `folder`, a few tensors in memory at a time; gives file name -> sha256.

    One `model.safetensors`, or shards of at most `shard_bytes` with an index. The hashes are of what was read back from
    each file, which is compared with what was written; PruneError where it differs. Files are flushed to disk, not
    renamed: the caller stages the folder.
    """
    shards = _split(tensors, shard_bytes)
    count = len(shards)
    names = [SINGLE] if count == 1 else [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    hashes = {name: _write_shard(tensors, shard, folder / name) for name, shard in zip(names, shards, strict=True)}
    if count > 1:
        index = {
            "metadata": {"total_size": tensors.bytes},
            "weight_map": {t: name for name, shard in zip(names, shards, strict=True) for t in shard},
        }
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / INDEX).write_text(text)
        hashes[INDEX] = hashlib.sha256(text.encode()).hexdigest()
    return hashes


def _split(tensors: Tensors, shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, info in tensors.info.items():
        if shards[-1] and size + info.bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += info.bytes
    return shards


def _write_shard(tensors: Tensors, names: list[str], path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("wb") as file, path.open("rb", buffering=0) as again:
        for chunk in _chunks(tensors, names):
            for start in range(0, len(chunk), PIECE):
                piece = memoryview(chunk)[start : start + PIECE]
                file.write(piece)
                file.flush()
                digest.update(_read_back(again, piece, path))
        os.fsync(file.fileno())
    return digest.hexdigest()


def _read_back(file: Any, written: memoryview, path: Path) -> bytearray:
    """What the file holds where `written` was just written; PruneError when it is something else."""
    found = bytearray(len(written))
    if file.readinto(found) != len(written) or found != written:
        raise PruneError("the disk gave back other bytes than were written", where=str(path))
    return found


def _chunks(tensors: Tensors, names: list[str]) -> Iterator[bytes | memoryview]:
    """The file's bytes in order: header, then each tensor; widest types first, so that every tensor is aligned."""
    order = sorted(names, key=lambda name: (-tensors.info[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in order:
        info = tensors.info[name]
        header[name] = {
            "dtype": CODES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [at, at + info.bytes],
        }
        at += info.bytes
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    yield len(raw).to_bytes(8, "little") + raw
    for name, value in zip(order, ahead(tensors, order), strict=True):
        info = tensors.info[name]
        tensor = value.detach().cpu().contiguous()
        assert tuple(tensor.shape) == info.shape and tensor.dtype == info.dtype, (name, tensor.shape, info)
        if prod(info.shape):
            yield memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
