"""A standalone export is an output of prune: verified, and replaced only when asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest

import prune
from prune import cli, files
from prune.errors import PruneError
from prune.exports import onnx
from prune.exports.job import Job
from prune.recipe import apply, check


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(job: Job, *, opset: int = 20, dtype: Literal["fp32", "int8"] = "fp32") -> dict[str, Any]:
        (job.folder / "model.onnx").write_bytes(f"graph {opset}".encode())
        return {"files": {"model.onnx": 8}, "warnings": [f"in {dtype}"]}

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


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"format": "onxn"}, "format: unknown export format 'onxn'; did you mean 'onnx'?"),
        ({"format": 3}, "format: unknown export format '3'"),
        ({"format": "onnx", "opsett": 18}, "opsett: unknown option 'opsett'; did you mean 'opset'?"),
        ({"opset": "18"}, "opset: opset must be a whole number, not '18'"),
        ({"dtype": "int4"}, "dtype: unknown dtype 'int4'; did you mean 'int8'?"),
    ],
)
def test_a_format_has_options_of_its_own_in_a_recipe(options: dict[str, Any], said: str, llama_folder: Path) -> None:
    with pytest.raises(PruneError) as caught:
        check({"model": str(llama_folder), "steps": [{"export": options}]})
    assert f"steps[0].export.{said}" in str(caught.value)


def test_an_export_lies_beside_the_checkpoint_and_is_named_after_its_dtype(llama_folder: Path, tmp_path: Path) -> None:
    steps = [{"export": {}}, {"export": {"format": "onnx", "dtype": "int8", "opset": 19}}]
    result = apply({"model": str(llama_folder), "steps": steps}, output=tmp_path / "out")
    written = {name: (tmp_path / "out" / name).read_text() for name in ("onnx/model.onnx", "onnx-int8/model.onnx")}
    assert written == {"onnx/model.onnx": "graph 20", "onnx-int8/model.onnx": "graph 19"}
    assert result.steps[1]["options"] == {"format": "onnx", "opset": 19, "dtype": "int8"}
    assert result.warnings == ["in fp32", "in int8"]


def test_two_exports_to_one_folder_are_refused_before_the_run(llama_folder: Path, tmp_path: Path) -> None:
    """Whatever stands between them: the folder is named after format and dtype alone."""
    middle = {"remove": {"what": "layers", "count": 1, "criterion": "random"}}
    recipe = {"model": str(llama_folder), "steps": [{"export": {"dtype": "int8"}}, middle]}
    recipe["steps"] += [{"export": {"dtype": "int8", "opset": 19}}]
    for run in (check, apply):
        with pytest.raises(PruneError) as caught:
            run(recipe, output=tmp_path / "out")
        assert "steps[2].export: step 1 exports to onnx-int8/ too" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("opset", "--set opset: needs NAME=VALUE"),
        ("opset=x", "--set opset: opset must be a whole number, not 'x'"),
        ("opsett=1", "unknown option 'opsett'; did you mean 'opset'?"),
    ],
)
def test_the_command_takes_the_same_options(
    setting: str, said: str, llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["export", str(llama_folder), str(tmp_path / "out"), "-q", "--set"]
    assert cli.run([*line, "opset=21"]) == 0
    assert (tmp_path / "out" / "model.onnx").read_text() == "graph 21"
    assert cli.run([*line, setting]) == 2
    assert said in capsys.readouterr().err


def test_the_python_call_checks_them_too(llama_folder: Path, tmp_path: Path) -> None:
    for options in ({"opsett": 1}, {"opset": "1"}):
        with pytest.raises(PruneError, match=r"option (of|'opset' of) format onnx"):
            prune.export(prune.open(llama_folder), tmp_path / "out", **options)
