"""Reading is strict: whatever could load something else than was saved is refused, by name."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from prune.errors import PruneError
from prune.model.checkpoint import INDEX, read_folder, read_header, write_folder
from prune.model.tensors import Info, Tensors


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "b.weight": torch.randn(3, 4, generator=generator),
        "a.weight": torch.randn(2, 5, generator=generator).to(torch.bfloat16),
        "c": torch.tensor(7.0, dtype=torch.float16),
        "empty": torch.zeros(0, 3),
    }


def lazily(tensors: dict[str, torch.Tensor]) -> Tensors:
    return Tensors({n: Info(tuple(t.shape), t.dtype) for n, t in tensors.items()}, tensors.__getitem__)


@pytest.mark.parametrize("shard_bytes", [10**9, 30])
def test_written_is_read_back_and_safetensors_agrees(tmp_path: Path, tensors: dict, shard_bytes: int) -> None:
    hashes = write_folder(lazily(tensors), tmp_path, shard_bytes=shard_bytes)
    found = read_folder(tmp_path)
    assert set(found.info) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(found.read(name), tensor)
    shards = [path for path in tmp_path.iterdir() if path.suffix == ".safetensors"]
    assert (len(shards) > 1) == (shard_bytes == 30) == (INDEX in hashes)
    theirs = {name: t for path in shards for name, t in load_file(path).items()}
    assert all(torch.equal(theirs[name], tensor) for name, tensor in tensors.items())


class _Spoiling(io.FileIO):
    """A disk that forgets a byte of whatever is written."""

    def write(self, piece: Any) -> int:
        return super().write(b"\0" + bytes(piece)[1:])


def test_what_the_disk_gives_back_is_compared(tmp_path: Path, tensors: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, mode, **k: _Spoiling(path, "r+") if mode == "rb+" else real(path, mode, **k)
    )
    with pytest.raises(PruneError, match="the disk gave back other bytes than were written"):
        write_folder(lazily(tensors), tmp_path)


def test_reading_one_tensor_reads_no_other(tmp_path: Path) -> None:
    save_file({"good": torch.ones(2), "bad": torch.tensor([float("nan")])}, tmp_path / "model.safetensors")
    found = read_folder(tmp_path)
    assert found.read("good").tolist() == [1, 1]
    with pytest.raises(PruneError, match="'bad' holds NaN or infinity"):
        found.read("bad")


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    save_file({"w": torch.tensor([1.0, value, 2.0]).to(dtype)}, tmp_path / "model.safetensors")
    with pytest.raises(PruneError, match="NaN or infinity"):
        read_folder(tmp_path).read("w")


def raw_file(path: Path, header: object, body: bytes = b"\0" * 8) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + body)
    return path


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (b'{"a": {"dtype":"F32","shape":[2],"data_offsets":[0,8]}, "a": {}}', "names a tensor twice"),
        (b" " + json.dumps({"a": ENTRY}).encode(), "not a mapping"),
        (b"{", "damaged safetensors header"),
        (b"[]", "not a mapping"),
        ({"a/../b": ENTRY}, "refused tensor name"),
        ({"a\0": ENTRY}, "refused tensor name"),
        ({"a": {**ENTRY, "more": 1}}, "damaged header entry"),
        ({"a": {**ENTRY, "shape": [-2]}}, "damaged header entry"),
        ({"a": {**ENTRY, "shape": [2.0]}}, "damaged header entry"),
        ({"a": {**ENTRY, "shape": [3]}}, "cannot have 8 bytes"),
        ({"a": {**ENTRY, "dtype": "F8_E4M3"}}, "quantised checkpoint cannot be pruned"),
        ({"a": {**ENTRY, "dtype": []}}, "quantised checkpoint cannot be pruned"),
        ({"a": ENTRY, "__metadata__": 5}, "__metadata__ must map names to text"),
        (b'{"a": ' + b"9" * 5000 + b"}", "damaged safetensors header"),
        ({"a": {**ENTRY, "data_offsets": [8, 16]}}, "overlaps another or leaves a hole"),
        ({"a": ENTRY, "b": ENTRY}, "overlaps another or leaves a hole"),
        ({}, "longer than its header says"),
    ],
)
def test_a_damaged_header_is_refused(tmp_path: Path, header: object, says: str) -> None:
    with pytest.raises(PruneError, match=says):
        read_header(raw_file(tmp_path / "x.safetensors", header))


def test_a_truncated_file_is_refused_before_it_is_read(tmp_path: Path, tensors: dict) -> None:
    write_folder(lazily(tensors), tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PruneError, match="truncated"):
        read_folder(tmp_path)


def test_a_file_truncated_after_opening_is_an_error_not_a_crash(tmp_path: Path, tensors: dict) -> None:
    write_folder(lazily(tensors), tmp_path)
    found = read_folder(tmp_path)
    os.truncate(tmp_path / "model.safetensors", 8)
    with pytest.raises(PruneError, match="truncated while it was read"):
        found.read("b.weight")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_header_crashes_the_reader(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    good = raw_file(tmp_path_factory.getbasetemp() / "good.safetensors", {"a": ENTRY}).read_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    broken = good[:at] + data.draw(st.binary(max_size=6)) + good[at + data.draw(st.integers(0, 4)) :]
    path = tmp_path_factory.getbasetemp() / "broken.safetensors"
    path.write_bytes(broken)
    try:
        read_header(path)
    except PruneError as error:
        said = str(error)
    else:
        said = ""
    assert "\n" not in said


def index(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("name", ["../out.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "x.bin", 3])
def test_the_index_may_not_leave_the_folder(tmp_path: Path, name: object) -> None:
    index(tmp_path, {"w": name})
    with pytest.raises(PruneError, match="not a plain .safetensors name"):
        read_folder(tmp_path)


def test_a_shard_may_not_be_a_link_out_of_the_folder(tmp_path: Path) -> None:
    folder, outside = tmp_path / "model", tmp_path / "secret.safetensors"
    folder.mkdir()
    save_file({"w": torch.ones(1)}, outside)
    (folder / "model.safetensors").symlink_to(outside)
    with pytest.raises(PruneError, match="link that leaves the model folder"):
        read_folder(folder)


def test_the_hub_cache_s_own_links_are_followed(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    save_file({"w": torch.ones(1)}, blobs / "0123")
    (snapshot / "model.safetensors").symlink_to("../../blobs/0123")
    assert read_folder(snapshot).read("w").item() == 1


def test_index_and_shard_must_agree(tmp_path: Path) -> None:
    save_file({"w": torch.ones(1), "v": torch.ones(1)}, tmp_path / "s.safetensors")
    index(tmp_path, {"w": "s.safetensors"})
    with pytest.raises(PruneError, match="disagree about tensor 'v'"):
        read_folder(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    index(tmp_path, {"w": "model-00002-of-00002.safetensors"})
    with pytest.raises(PruneError, match=r"no file 'model-00002-of-00002\.safetensors'"):
        read_folder(tmp_path)


def test_a_pickle_is_never_read(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(PruneError, match=r"pytorch_model\.bin is a pickle, which is never read"):
        read_folder(tmp_path)


def test_a_single_file_beside_an_index_is_ambiguous(tmp_path: Path) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / "model.safetensors")
    index(tmp_path, {"w": "model.safetensors"})
    with pytest.raises(PruneError, match="holds both"):
        read_folder(tmp_path)
