"""A standalone export is an output of prune: verified, and replaced only when asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import prune
from prune import cli, files
from prune.errors import PruneError
from prune.exports import onnx


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(_model: Any, _tokenizer: Any, folder: Path, **_options: Any) -> dict[str, Any]:
        with files.staged(folder) as staging:
            (staging / "model.onnx").write_bytes(b"graph")
        return {"files": {"model.onnx": 5}}

    monkeypatch.setattr(onnx, "export", write)


def test_an_export_can_be_verified_and_replaced(llama_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = ["export", str(llama_folder), str(out), "-q"]
    assert cli.run(line) == 0
    assert files.names(tmp_path) == ["out/model.onnx", "out/prune.json"]
    assert files.verify(out) == []
    assert cli.run(["verify", str(out), "-q"]) == 0
    (out / "model.onnx").write_bytes(b"other")
    assert cli.run(["verify", str(out), "-q"]) == 1
    assert cli.run([*line, "--overwrite"]) == 0
    assert files.verify(out) == []


def test_an_occupied_folder_is_refused_before_the_model_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prune, "open", lambda *_, **__: pytest.fail("opened"))
    (tmp_path / "mine.txt").touch()
    assert cli.run(["export", "bundled", str(tmp_path), "--overwrite"]) == 2
    assert "was not made by prune, so it is never replaced" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_one_line(llama_folder: Path) -> None:
    with pytest.raises(PruneError, match="cannot be written"):
        prune.export(prune.open(llama_folder), "/proc/none/out")
