"""Encoders, vision models and fewer bits: graphs that answer in one call, in half precision and in integers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnxscript import ir
from transformers import PreTrainedModel

import prune
from prune.errors import PruneError
from prune.exports import encoder, onnx, parity, parity_encoder
from prune.model import tracing
from prune.model.graph import completed, feeds
from tests import zoo
from tests.tiny import tiny_model, token_ids

ENCODERS = {  # architecture -> the graph's inputs and outputs
    "bert:BertForSequenceClassification": (["input_ids", "attention_mask", "token_type_ids"], ["logits"]),
    "roberta:RobertaForMaskedLM": (["input_ids", "attention_mask", "token_type_ids"], ["logits"]),  # of two types
    "distilbert:DistilBertForTokenClassification": (["input_ids", "attention_mask"], ["logits"]),
    "electra:ElectraForPreTraining": (["input_ids", "attention_mask", "token_type_ids"], ["logits"]),
    "vit:": (["pixel_values"], ["logits"]),
    "deit:": (["pixel_values"], ["logits"]),
}


def session(folder: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(folder / "model.onnx"))


@pytest.mark.parametrize("name", ENCODERS)
def test_models_that_answer_in_one_call(name: str, tmp_path: Path) -> None:
    model_type, _, architecture = name.partition(":")
    module = zoo.module(model_type, architecture)
    record = onnx.save(module, {}, tmp_path / "onnx")
    found = session(tmp_path / "onnx")
    inputs, outputs = ENCODERS[name]
    assert [value.name for value in found.get_inputs()] == inputs
    assert [value.name for value in found.get_outputs()] == outputs
    assert all(value.shape[0] == "batch_size" for value in (*found.get_inputs(), *found.get_outputs()))
    sizes = ["sequence_length"] if inputs[0] == "input_ids" else [3, 8, 8]  # an image's are numbers
    assert found.get_inputs()[0].shape[1:] == sizes
    assert set(record["files"]) == {"config.json", "model.onnx"}
    assert record["parity"]["max_difference"] < 5e-5
    assert record["parity"]["same_answers"][0] == record["parity"]["same_answers"][1] > 0
    feeds = zoo.batch(model_type)
    expected = zoo.logits(module, feeds)
    given = {name: feeds.get(name, torch.zeros_like(feeds[inputs[0]])).numpy() for name in inputs}
    said = torch.from_numpy(found.run(None, given)[0])
    text = feeds.get("attention_mask", torch.ones(2, 1)).bool()
    attended = expected.ndim > 1 and expected.shape[:2] == text.shape
    gap = (said - expected).abs()
    assert (gap[text] if attended else gap).max() < 1e-4 * expected.abs().max()


def test_an_encoder_with_a_decoder_is_refused_in_a_dry_run(tmp_path: Path) -> None:
    zoo.module("t5").save_pretrained(tmp_path / "t5")
    with pytest.raises(PruneError, match="T5ForConditionalGeneration is an encoder with a decoder"):
        prune.check({"model": str(tmp_path / "t5"), "steps": [{"export": {"format": "onnx"}}]})


@pytest.fixture(scope="module")
def small() -> PreTrainedModel:
    """A model as gentle as trained ones: rounding its weights does not throw it off."""
    model = tiny_model("llama", num_hidden_layers=2, vocab_size=96)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data *= 0.3
    return model


@pytest.fixture(scope="module")
def sizes(small: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The record of each way to write it, and its folder."""
    root = tmp_path_factory.mktemp("dtypes")
    batches = [
        {"input_ids": token_ids(2, 12, seed=seed), "attention_mask": torch.ones(2, 12).long()} for seed in (1, 2)
    ]
    found: dict[str, Any] = {}
    trace = onnx._graph
    traced: dict[torch.dtype, Any] = {}

    def once(kind: Any, model: PreTrainedModel, *given: Any) -> Any:
        if model.dtype not in traced:
            traced[model.dtype] = trace(kind, model, *given)
        return traced[model.dtype]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx, "_graph", once)
        for name in ("fp32", "fp16", "int8", "static"):
            dtype: Any = "int8" if name == "static" else name
            given = (lambda: batches) if name == "static" else None
            found[name] = onnx.save(small, {}, root / name, dtype=dtype, batches=given) | {"folder": root / name}
    return found


def test_each_is_within_its_tolerance_and_says_so(sizes: dict[str, Any]) -> None:
    for name, limit in (("fp32", 1e-4), ("fp16", 2e-2), ("int8", 0.5), ("static", 0.5)):
        parity = sizes[name]["parity"]
        assert parity["tolerance"] == limit
        assert parity["max_difference"] <= limit
        equal, total = parity["greedy_tokens"]
        assert total == 80
        assert equal >= (80 if name == "fp32" else 40)
    assert sizes["fp16"]["parity"]["max_difference"] > sizes["fp32"]["parity"]["max_difference"]


def test_half_precision_holds_half_the_bytes_and_a_cache_of_its_own_type(sizes: dict[str, Any]) -> None:
    kinds = {value.name: value.type for value in session(sizes["fp16"]["folder"]).get_inputs()}
    assert {kind for name, kind in kinds.items() if name.startswith("past_key_values")} == {"tensor(float16)"}
    assert weights(sizes["fp16"]["folder"]) < 0.55 * weights(sizes["fp32"]["folder"])
    assert json.loads((sizes["fp16"]["folder"] / "config.json").read_text())["dtype"] == "float16"


@pytest.mark.parametrize("name", ["int8", "static"])
def test_integers_hold_a_third_and_have_a_scale_for_each_channel(name: str, sizes: dict[str, Any]) -> None:
    graph = ir.load(sizes[name]["folder"] / "model.onnx").graph
    eights = [one.const_value for one in graph.initializers.values() if one.const_value.dtype == ir.DataType.INT8]
    assert len([one for one in eights if one.size >= 48 * 24]) >= 2 * 7  # every linear of both layers
    assert weights(sizes[name]["folder"]) < 0.35 * weights(sizes["fp32"]["folder"])
    scales = [one.const_value for key, one in graph.initializers.items() if key.endswith("_scale")]
    assert {48, 40} <= {one.size for one in scales}


def test_static_ranges_are_in_the_graph_and_dynamic_ones_are_found_in_each_call(sizes: dict[str, Any]) -> None:
    kinds = {name: [n.op_type for n in ir.load(sizes[name]["folder"] / "model.onnx").graph] for name in sizes}
    assert "DynamicQuantizeLinear" in kinds["int8"]
    assert "DynamicQuantizeLinear" not in kinds["static"]
    assert "QuantizeLinear" in kinds["static"]


def weights(folder: Path) -> int:
    return sum(one.const_value.nbytes for one in ir.load(folder / "model.onnx").graph.initializers.values())


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_int8_classifiers_answer_alike(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges from calibration too, which tells nothing of token types."""
    module = zoo.module(name, seed=1)
    torch.manual_seed(0)
    gentle = type(module)(module.config).eval()
    graph = replace(onnx._graph(encoder, gentle, tracing.OPSET, False), repeats=False)
    monkeypatch.setattr(onnx, "_graph", lambda *_: graph)
    batches = [{**zoo.batch(name, seed), "labels": torch.zeros(2).long()} for seed in (1, 2)]
    ways = {"dynamic": None, "static": lambda: batches}
    for way, given in ways.items() if name == "bert" else [("static", ways["static"])]:
        record = onnx.save(gentle, {}, tmp_path / way, dtype="int8", batches=given)
        equal, total = record["parity"]["same_answers"]
        assert equal >= 0.7 * total
        kinds = {node.op_type for node in ir.load(tmp_path / way / "model.onnx").graph}
        assert ("DynamicQuantizeLinear" in kinds) == (way == "dynamic")


def test_a_graph_is_given_all_it_takes_and_only_a_cache_is_made_up() -> None:
    ids = token_ids(2, 5)
    whole = completed({"input_ids": ids, "token_type_ids": ids})
    assert set(whole) == {"input_ids", "attention_mask", "token_type_ids", "position_ids"}
    assert whole["token_type_ids"] is ids and whole["attention_mask"].all()
    value = SimpleNamespace(name="bbox", shape=[2, 5], type="tensor(int64)")
    with pytest.raises(AssertionError, match="bbox"):
        feeds(SimpleNamespace(get_inputs=lambda: [value]), whole)


def test_one_answer_a_row_is_told_from_one_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though there are as many labels as tokens."""
    module = zoo.module("bert", num_labels=9)
    monkeypatch.setattr(parity_encoder, "open_graph", lambda _: None)
    monkeypatch.setattr(parity_encoder, "outputs", lambda _, given: encoder.answers(module, given))
    written = parity.Written(Path("model.onnx"), module, {}, 1e-4)
    found = parity_encoder.compare(written, advance=lambda *_: None)
    rows = sum(point.batch for point in parity_encoder._points(module))
    assert found["same_answers"] == [rows, rows]


def test_a_static_range_needs_int8_and_calibration(llama_folder: Path) -> None:
    for options, said in (
        ({"static": True}, "static says how int8 finds its ranges, and dtype is fp32"),
        ({"static": True, "dtype": "int8"}, "static looks at data; give the recipe a calibration"),
    ):
        with pytest.raises(PruneError, match=said):
            prune.check({"model": str(llama_folder), "steps": [{"export": options}]})


def test_what_fewer_bits_cost_is_stated_on_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundled model is trained: int8 hardly moves its perplexity, with ranges of the recipe's calibration."""
    from prune.exports import quantize

    monkeypatch.setattr(quantize, "WINDOWS", 2)
    monkeypatch.setattr(quantize, "LENGTH", 64)
    model = prune.open("bundled")
    layer = prune.groups(model, "layers")[0]
    short = prune.cut(model, {layer.name: [0, 5]})
    prune.save(short, tmp_path / "short")
    steps = [{"export": {"dtype": "int8", "static": True}}]
    data = {"data": "python-docs", "samples": 4, "length": 64}
    done = prune.apply({"model": str(tmp_path / "short"), "calibration": data, "steps": steps}, output=tmp_path / "out")
    record = done.steps[0]["record"]
    assert record["folder"] == "onnx-int8-static"
    change = record["perplexity_change"]
    assert change["tokens"] == 2 * 63
    assert 0.9 < change["after"] / change["before"] < 1.1
    assert change["after"] != change["before"]
    assert record["files"]["model.onnx"] < 0.3 * 4 * short.tensors.parameters
    assert {"tokenizer.json", "tokenizer_config.json"} <= set(record["files"])
    assert np.isfinite(change["after"])
    graph = ir.load(tmp_path / "out" / "onnx-int8-static" / "model.onnx").graph
    tables = [one for one in graph.initializers.values() if short.config.vocab_size in one.shape and len(one.shape) > 1]
    assert [one.dtype for one in tables] == [ir.DataType.INT8]  # of the embedding that is the head too


def test_the_documented_exports_stand_beside_each_other(tmp_path: Path) -> None:
    page = (Path(onnx.__file__).parents[2] / "docs" / "deployment.md").read_text(encoding="utf-8")
    listed = page.split("## ONNX\n\n```yaml\n")[1].split("```")[0]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: bundled\ncalibration: {{data: python-docs, samples: 2}}\nsteps:\n{listed}")
    found = prune.check(recipe)
    assert [step["record"]["folder"] for step in found.steps] == ["onnx", "onnx-fp16", "onnx-int8", "onnx-int8-static"]


def test_what_torch_cannot_trace_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    class Branches(torch.nn.Module):
        def forward(self, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
            return [inputs["x"] if inputs["x"].sum() > 3 else -inputs["x"]]

    with pytest.raises(PruneError, match="torch cannot trace it into an ONNX graph: .*"):
        tracing.traced(tracing.Ports(Branches(), {"x": torch.ones(2)}, ["y"], {"x": ("n",), "y": ("n",)}))
    assert capfd.readouterr() == ("", "")
