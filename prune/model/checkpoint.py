"""Safetensors on disk: strict lazy reading of a folder's shards, and streamed writing of new ones."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prune.errors import PruneError
from prune.model.tensors import Info, Tensors, finite

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
PIECE = 2 * 1024**2  # bytes written, read back and hashed at a time
FLUSHED = 2**26  # bytes after which a file that is being written is flushed


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
    """Write all tensors as safetensors into `folder`, a few pieces in memory at a time; gives file name -> sha256.

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
    """Writes a file of its whole size from the start, each tensor to its place; gives the sha256.

    As many tensors are written at once as `tensors` can compute, piece by piece; behind them one thread reads the file
    from its beginning, hashes it, and has it flushed now and then, so that little is left to flush at the end.
    """
    head, places = _plan(tensors, names)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        file.truncate(len(head) + sum(tensors.info[name].bytes for name in names))
    _write(path, 0, [memoryview(head)])
    with ThreadPoolExecutor(1) as behind:
        waiting, written = [behind.submit(_hash, digest, path, 0, len(head))], 0
        for name in _in_order(list(places), partial(_write_tensor, tensors, path, places), tensors.threads):
            waiting.append(behind.submit(_hash, digest, path, places[name], tensors.info[name].bytes))
            written += tensors.info[name].bytes
            if written >= FLUSHED:
                waiting.append(behind.submit(_flush, path))
                written = 0
    for done in waiting:
        done.result()
    _flush(path)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _plan(tensors: Tensors, names: list[str]) -> tuple[bytes, dict[str, int]]:
    """The file's header, and where each tensor's bytes begin; widest types first, so that every tensor is aligned."""
    order = sorted(names, key=lambda name: (-tensors.info[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    places, at = {}, 0
    for name in order:
        info = tensors.info[name]
        header[name] = {"dtype": CODES[info.dtype], "shape": list(info.shape), "data_offsets": [at, at + info.bytes]}
        places[name] = at
        at += info.bytes
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    head = len(raw).to_bytes(8, "little") + raw
    return head, {name: len(head) + place for name, place in places.items()}


def _in_order(names: list[str], write: Callable[[str], None], threads: int) -> Iterator[str]:
    """The names, each once its tensor was written, by so many threads; by this one where it is one."""
    if threads == 1:
        for name in names:
            write(name)
            yield name
        return
    with _one_thread_each(), ThreadPoolExecutor(threads) as pool:
        waiting = [pool.submit(write, name) for name in names]
        try:
            for name, written in zip(names, waiting, strict=True):
                written.result()
                yield name
        finally:
            for written in waiting:
                written.cancel()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """torch's own threads stand back, so that sums do not depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _write_tensor(tensors: Tensors, path: Path, places: Mapping[str, int], name: str) -> None:
    """One tensor to its place in the file."""
    at, info = places[name], tensors.info[name]
    end = _write(path, at, (_bytes_of(piece, info) for piece in tensors.pieces(name)))
    assert end == at + info.bytes, (name, info, end - at)


def _bytes_of(piece: Tensor, info: Info) -> memoryview:
    assert piece.dtype == info.dtype, (piece.dtype, info)
    return memoryview(piece.detach().cpu().contiguous().view(torch.uint8).numpy())  # type: ignore[arg-type]


def _write(path: Path, at: int, pieces: Iterable[memoryview]) -> int:
    """Writes pieces one after the other from a place on, reads each back and compares; gives where they end."""
    with path.open("rb+", buffering=0) as file:
        for whole in pieces:
            for start in range(0, len(whole), PIECE):
                piece = whole[start : start + PIECE]
                file.seek(at)
                left = piece
                while left:
                    left = left[file.write(left) :]
                found = bytearray(len(piece))
                file.seek(at)
                if file.readinto(found) != len(piece) or found != piece:
                    raise PruneError("the disk gave back other bytes than were written", where=str(path))
                at += len(piece)
    return at


def _hash(digest: Any, path: Path, start: int, count: int) -> None:
    """Adds a part of a file to a hash."""
    buffer = memoryview(bytearray(min(count, PIECE)))
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while count:
            part = buffer[: min(count, PIECE)]
            _fill(file, part, path)
            digest.update(part)
            count -= len(part)
