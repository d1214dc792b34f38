"""The table says what the exports themselves say, and every rule has a source and can be met."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import prune
from prune import cli
from prune.exports import gguf, hf, onnx, preflight
from prune.exports.export import reason
from prune.exports.job import Job
from prune.model.model import Model
from tests import zoo

RUNTIMES = ["transformers", "vLLM", "llama.cpp", "ONNX Runtime", "Optimum"]
VERDICTS = ("loads", "loads with", "will not")
KINDS = ("dense", "fewer heads", "layers differ")


@cache
def cut(model_type: str, kind: str) -> Model:
    """A model as it is, with a head less everywhere, or with one layer narrower than the others."""
    model = prune.open(zoo.module(model_type))
    if kind == "dense" or "heads" in model.family.refused:
        return model  # of T5 a layer cannot differ from the others either
    groups = prune.groups(model, "heads" if kind == "fewer heads" else "channels")
    chosen = groups if kind == "fewer heads" else groups[:1]
    scores = {group.name: torch.zeros(group.units) for group in chosen}
    return prune.cut(model, prune.choose(model, chosen, scores, count=1 if kind == "fewer heads" else 8))


def verdicts(model: Model) -> dict[str, dict[str, str]]:
    return {row["runtime"]: row for row in preflight.table(model)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_type", zoo.FAMILIES)
def test_every_model_has_a_verdict_from_every_runtime_that_agrees_with_the_exports(model_type: str, kind: str) -> None:
    model = cut(model_type, kind)
    found = verdicts(model)
    assert list(found) == RUNTIMES
    assert all(row["verdict"] in VERDICTS and row["why"] and row["source"] for row in found.values())
    assert (found["ONNX Runtime"]["verdict"] == "will not") == (onnx.check(model) is not None)
    assert (found["llama.cpp"]["verdict"] == "will not") == (gguf.check(model) is not None)
    if not model.uniform:
        assert found["transformers"]["verdict"] == "loads with"
        assert (found["vLLM"]["verdict"] == "will not") == (hf.check(model, as_="deci") is not None)
        assert found["Optimum"]["verdict"] == "will not"
    if found["ONNX Runtime"]["verdict"] == "will not":
        assert found["Optimum"]["verdict"] == "will not"
        assert reason(model, "onnx") == found["Optimum"]["why"]


def test_optimum_divides_the_width_by_the_heads() -> None:
    for model_type, kind, verdict in (
        ("llama", "dense", "loads with"),
        ("llama", "fewer heads", "will not"),
        ("qwen2", "fewer heads", "will not"),
        ("gpt2", "dense", "loads with"),
        ("gemma3_text", "fewer heads", "loads with"),  # of which it reads head_dim
        ("phi3", "dense", "will not"),  # of which it does not read the key-value heads
        ("bert", "dense", "loads with"),
    ):
        assert verdicts(cut(model_type, kind))["Optimum"]["verdict"] == verdict, (model_type, kind)


def test_optimum_has_a_class_for_some_heads_only() -> None:
    for architecture, verdict in (
        ("ElectraForPreTraining", "will not"),
        ("ElectraForMaskedLM", "loads with"),
        ("ElectraForQuestionAnswering", "loads with"),
    ):
        assert verdicts(prune.open(zoo.module("electra", architecture)))["Optimum"]["verdict"] == verdict


def test_every_rule_decides_some_model() -> None:
    met = {
        (row["runtime"], row["why"])
        for name in zoo.FAMILIES
        for kind in KINDS
        for row in preflight.table(cut(name, kind))
    }
    more = [prune.open("bundled"), prune.open(zoo.module("electra", "ElectraForPreTraining"))]
    met |= {(row["runtime"], row["why"]) for model in more for row in preflight.table(model)}
    for rule in preflight._rules():
        assert rule["source"]
        assert rule["verdict"] == "goes on" or (rule["runtime"], rule["why"]) in met, rule


def test_what_was_exported_loads_from_its_folder() -> None:
    differs, dense = cut("llama", "layers differ"), cut("llama", "dense")
    exports: list[dict[str, Any]] = [
        {"format": "onnx", "dtype": "fp32", "folder": "onnx"},
        {"format": "onnx", "dtype": "int8", "folder": "onnx-int8"},
        {"format": "gguf", "dtype": "f16", "folder": "gguf"},
    ]
    found = {row["runtime"]: (row["verdict"], row["why"]) for row in preflight.table(dense, exports)}
    assert found["ONNX Runtime"] == ("loads", "onnx/, onnx-int8/")
    assert found["llama.cpp"] == ("loads", "gguf/")
    assert found["Optimum"] == ("loads", "onnx/, onnx-int8/ by ORTModelForCausalLM")
    for runtime, options in (("transformers", {"code": True, "as": None}), ("vLLM", {"code": False, "as": "deci"})):
        rows = {row["runtime"]: row for row in preflight.table(differs, [{"format": "hf", "folder": "hf", **options}])}
        assert rows[runtime]["verdict"] == "loads" and rows[runtime]["why"].startswith("hf/ with ")
        others = [row for row in rows.values() if row["runtime"] != runtime]
        assert others == [row for row in preflight.table(differs) if row["runtime"] != runtime]
    assert preflight.table(differs, exports)[-1]["verdict"] == "will not"  # Optimum does not read it for all that


def test_check_and_apply_show_it_and_the_output_keeps_it(
    llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(job: Job, *, dtype: str = "fp32") -> dict[str, Any]:
        (job.folder / "model.onnx").write_bytes(dtype.encode())
        return {}

    monkeypatch.setattr(onnx, "export", write)
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"layers": [0, 2]}))
    recipe = tmp_path / "recipe.yaml"
    cut_ = f"{{remove: {{what: layers, plan: {plan}}}}}"
    recipe.write_text(f"model: {llama_folder}\nsteps: [{{export: {{dtype: int8}}}}, {cut_}, {{export: {{}}}}]\n")
    assert cli.run(["check", str(recipe), "-q"]) == 0
    shown = capsys.readouterr().out
    assert all(runtime in shown for runtime in RUNTIMES)
    assert "onnx/ by ORTModelForCausalLM" in shown
    assert "onnx-int8/" not in shown  # which is of the model before the cut
    assert cli.run(["apply", str(recipe), "--output", str(tmp_path / "out"), "-q", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    kept: list[dict[str, Any]] = json.loads((tmp_path / "out" / "prune.json").read_text())["runtimes"]
    assert [row["runtime"] for row in kept] == RUNTIMES
    assert said["runtimes"] == kept
    small, last = prune.open(tmp_path / "out"), {"format": "onnx", "folder": "onnx"}
    assert kept == preflight.table(small, [last]) != preflight.table(small)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| vLLM | loads |" in text
