"""An exported graph computes what the model computes, is named as tools expect, and is written whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from onnxscript import ir
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import prune
from prune.errors import PruneError, unknown
from prune.exports import formats, onnx, parity, parity_decoder
from prune.model import tracing
from prune.model.graph import positions
from tests import zoo
from tests.tiny import tiny_model, token_ids

MODELS = {
    "gpt2": lambda: tiny_model("gpt2", num_hidden_layers=1, n_positions=64, n_embd=48),
    "mistral": lambda: tiny_model("mistral", num_hidden_layers=1, sliding_window=6),
    "qwen3": lambda: tiny_model("qwen3", num_hidden_layers=1, dtype=torch.bfloat16),
}


def differing(model: Any) -> PreTrainedModel:
    """The Llama with one of four key-value heads left in layer 1, and a narrower MLP there."""
    attention, mlp, width = model.model.layers[1].self_attn, model.model.layers[1].mlp, model.config.head_dim
    attention.q_proj, attention.o_proj = _first(attention.q_proj, 0, 2 * width), _first(attention.o_proj, 1, 2 * width)
    attention.k_proj, attention.v_proj = (_first(part, 0, width) for part in (attention.k_proj, attention.v_proj))
    mlp.gate_proj, mlp.up_proj = _first(mlp.gate_proj, 0, 17), _first(mlp.up_proj, 0, 17)
    mlp.down_proj = _first(mlp.down_proj, 1, 17)
    return model


def _first(linear: nn.Linear, dim: int, count: int) -> nn.Linear:
    weight = linear.weight.data.narrow(dim, 0, count).clone()
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    made.weight.data = weight
    return made


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    """Layers that differ, and embeddings large enough that copying them would be noticed."""
    return differing(tiny_model("llama", num_hidden_layers=2, tie_word_embeddings=True, vocab_size=200))


@pytest.fixture(scope="module")
def both(
    model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory
) -> tuple[tracing.Graph, tuple[Path, dict[str, Any]]]:
    """What was traced, and what was written of it: once for all tests."""
    folder = tmp_path_factory.mktemp("export") / "onnx"
    found: list[tracing.Graph] = []
    trace = onnx._graph
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx, "_graph", lambda *given: found.append(trace(*given)) or found[-1])
        record = onnx.save(model, {}, folder)
    return found[0], (folder, record)


@pytest.fixture(scope="module")
def made(both: Any) -> tracing.Graph:
    return both[0]


@pytest.fixture(scope="module")
def exported(both: Any) -> tuple[Path, dict[str, Any]]:
    return both[1]


def session(folder: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(folder / "model.onnx"))


def test_formats_are_the_files_that_can_check() -> None:
    assert {"gguf", "onnx"} <= set(formats()) and not {"export", "parity", "job"} & set(formats())
    assert "did you mean 'onnx'?" in str(unknown("export format", "onxn", formats()))


def test_names_and_shapes_are_those_that_tools_expect(exported: tuple[Path, dict[str, Any]]) -> None:
    loaded = session(exported[0])
    inputs = {value.name: value.shape for value in loaded.get_inputs()}
    outputs = {value.name: value.shape for value in loaded.get_outputs()}
    total = "past_sequence_length + sequence_length"
    assert inputs.pop("input_ids") == ["batch_size", "sequence_length"]
    assert inputs.pop("attention_mask") == ["batch_size", total]
    assert inputs.pop("position_ids") == ["batch_size", "sequence_length"]
    assert outputs.pop("logits") == ["batch_size", "sequence_length", 200]
    parts = {f"{layer}.{part}": heads for layer, heads in ((0, 4), (1, 1)) for part in ("key", "value")}
    assert inputs == {f"past_key_values.{k}": ["batch_size", n, "past_sequence_length", 6] for k, n in parts.items()}
    assert outputs == {f"present.{k}": ["batch_size", n, total, 6] for k, n in parts.items()}


def test_the_record_and_the_companions(exported: tuple[Path, dict[str, Any]]) -> None:
    folder, record = exported
    assert record["format"] == "onnx"
    assert record["opset"] == ir.load(folder / "model.onnx").opset_imports[""] == 20
    assert record["files"] == {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    assert set(record["files"]) == {"config.json", "generation_config.json", "model.onnx"}
    assert record["parity"]["greedy_tokens"] == [2 * 16 + 3 * 16] * 2
    assert 0 <= record["parity"]["max_difference"] < 1e-5
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    json.dumps(record, allow_nan=False)


def test_plain_greedy_decoding_equals_generate(model: PreTrainedModel, exported: tuple[Path, dict[str, Any]]) -> None:
    """Without any code of ours: a client that knows the names alone."""
    loaded, ids = session(exported[0]), token_ids(2, 7)
    expected = model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None)
    past = {
        value.name: np.zeros((2, value.shape[1], 0, value.shape[3]), np.float32)
        for value in loaded.get_inputs()
        if value.name.startswith("past_key_values")
    }
    new, seen = ids.numpy(), ids.numpy()
    for _ in range(6):
        positions = np.arange(seen.shape[1])[None, -new.shape[1] :].repeat(2, 0)
        feeds = {"input_ids": new, "attention_mask": np.ones_like(seen), "position_ids": positions, **past}
        logits, *present = loaded.run(None, feeds)
        past = dict(zip(past, present, strict=True))
        new = logits[:, -1:].argmax(-1)
        seen = np.concatenate([seen, new], axis=1)
    assert seen.tolist() == expected.tolist()


def test_tied_embeddings_are_stored_once(exported: tuple[Path, dict[str, Any]]) -> None:
    graph = ir.load(exported[0] / "model.onnx").graph
    shapes = [tuple(value.shape.numpy()) for value in graph.initializers.values()]
    assert shapes.count((200, 48)) + shapes.count((48, 200)) == 1


def test_nothing_of_this_machine_is_in_the_file(exported: tuple[Path, dict[str, Any]]) -> None:
    content = (exported[0] / "model.onnx").read_bytes()
    for trace in (b"File ", b".py", b"site-packages", str(Path.home()).encode(), str(Path.cwd()).encode()):
        assert trace not in content, trace


def test_again_gives_the_same_bytes_changes_nothing_and_prints_nothing(
    model: PreTrainedModel,
    exported: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder, record = exported
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = model.config.to_dict(), model.generation_config.to_dict(), model.config._attn_implementation
    assert onnx.save(model, {}, tmp_path / "again") == record
    assert (tmp_path / "again" / "model.onnx").read_bytes() == (folder / "model.onnx").read_bytes()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert settings == (model.config.to_dict(), model.generation_config.to_dict(), model.config._attn_implementation)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("name", MODELS)
def test_other_models(name: str, tmp_path: Path) -> None:
    """Parity is checked inside, with left padding and beyond the sliding window."""
    other = MODELS[name]()
    dtype = other.dtype
    record = onnx.save(other, {}, tmp_path / "onnx")
    assert record["parity"]["max_difference"] < 1e-5
    assert record["parity"]["greedy_tokens"][0] + len(record.get("notes", [])) == 80
    assert other.dtype == dtype


def damaged(folder: Path, model: PreTrainedModel, *, layer: int | None) -> tracing.Graph:
    """The graph with one weight changed: of a layer's MLP, or of what comes after the layers."""
    loaded = ir.load(folder / "model.onnx")
    weight = model.model.norm.weight if layer is None else model.model.layers[layer].mlp.down_proj.weight
    name, value = next(
        (name, value) for name, value in loaded.graph.initializers.items() if same(value.const_value.numpy(), weight)
    )
    changed = value.const_value.numpy().copy()
    changed.flat[changed.size // 2] += 5.0
    value.const_value = ir.tensor(changed, name=name)
    return tracing.Graph(loaded, {})


def same(found: np.ndarray, weight: torch.Tensor) -> bool:
    expected = weight.detach().numpy()
    return any(found.shape == one.shape and np.array_equal(found, one) for one in (expected, expected.T))


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (0, "the first layer that differs is model.layers.0, by "),
        (1, "the first layer that differs is model.layers.1, by "),
        (None, "all layers agree in one call, so it is what comes after them, or the cache"),
    ],
)
def test_a_graph_that_differs_is_refused_names_the_layer_and_leaves_nothing(
    layer: int | None,
    said: str,
    model: PreTrainedModel,
    made: tracing.Graph,
    exported: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert set(made.ends) == {"model.layers.0", "model.layers.1"}
    found = tracing.Graph(damaged(exported[0], model, layer=layer).model, made.ends)
    monkeypatch.setattr(onnx, "_graph", lambda *_: found)
    with pytest.raises(PruneError, match=r"logits by .* row \d, position \d+;.*; nothing was written") as caught:
        onnx.save(model, {}, tmp_path / "onnx")
    assert said in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_of_nans_is_refused(
    model: PreTrainedModel,
    made: tracing.Graph,
    exported: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = ir.load(exported[0] / "model.onnx")
    name, value = max(loaded.graph.initializers.items(), key=lambda pair: pair[1].const_value.size)
    value.const_value = ir.tensor(np.full_like(value.const_value.numpy(), np.nan), name=name)
    monkeypatch.setattr(onnx, "_graph", lambda *_: tracing.Graph(loaded, made.ends))
    with pytest.raises(PruneError, match="logits by nan of the largest"):
        onnx.save(model, {}, tmp_path / "onnx")


def test_greedy_tokens_may_differ_only_in_a_near_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", num_hidden_layers=1)
    model.lm_head.weight.data[1::2] = model.lm_head.weight.data[0::2]  # pairs of tokens that no logit tells apart
    nudge, point = torch.zeros(96), parity.Point(2, 5, "left-padded")

    def nudged(_: Any, ids: torch.Tensor, mask: torch.Tensor, past: Any = None) -> tuple[torch.Tensor, Any]:
        seen = ids if past is None else torch.cat([past, ids], dim=1)
        output = model(input_ids=seen, attention_mask=mask, position_ids=positions(mask))
        return output.logits + nudge, seen

    monkeypatch.setattr(parity_decoder, "run_graph", nudged)
    nudge[1::2] = 1e-5  # the other of each pair
    equal, notes = parity_decoder._greedy(None, model, point, 4, 1e-4)
    assert (equal, len(notes)) == (0, 8)
    assert notes[0].startswith("near tie of greedy tokens at batch 2, length 5, left-padded: row 0, new token 0")
    nudge[7] = 100.0
    with pytest.raises(PruneError, match="greedy decoding differs from PyTorch's generate at batch 2"):
        parity_decoder._greedy(None, model, point, 4, 1e-4)


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_large_weights_lie_beside_the_graph(
    dtype: Any,
    model: PreTrainedModel,
    made: tracing.Graph,
    exported: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = tracing.Graph(ir.load(exported[0] / "model.onnx"), made.ends)
    monkeypatch.setattr(onnx, "_graph", lambda *_: loaded)
    monkeypatch.setattr(tracing, "LARGEST", 1000)
    files = onnx.save(model, {}, tmp_path / "onnx", dtype=dtype, tolerance=10.0)["files"]
    assert set(files) == {"config.json", "generation_config.json", "model.onnx", "model.onnx_data"}
    least = (4 if dtype == "fp32" else 1) * 200 * 48
    assert files["model.onnx_data"] > least
    assert dtype != "fp32" or files["model.onnx"] < exported[1]["files"]["model.onnx"] - least


def test_an_occupied_folder_is_refused_before_work(model: PreTrainedModel, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(PruneError, match="never replaced"):
        onnx.save(model, {}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_opset_that_torch_cannot_write_is_refused(
    model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Program:
        model = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 18}), ir_version=10)
        optimize = staticmethod(lambda: None)

    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: Program)
    with pytest.raises(PruneError, match="opset: torch writes this model with opset 18, and cannot with 12"):
        onnx.save(model, {}, tmp_path / "onnx", opset=12)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "qwen3"])
def test_carried(name: str) -> None:
    assert onnx.check(prune.open(zoo.module(name))) is None


@pytest.mark.parametrize(
    ("architecture", "why"),
    [
        ("MambaForCausalLM", "MambaForCausalLM"),
        ("T5ForConditionalGeneration", "an encoder with a decoder"),
        ("Qwen3NextForCausalLM", "keeps another state"),
    ],
)
def test_not_carried(architecture: str, why: str) -> None:
    found = getattr(transformers, architecture)
    assert why in str(onnx._refusal(found, found.config_class()))


@pytest.mark.parametrize("nested", [False, True])
def test_frequencies_that_change_with_the_length_are_not_carried(nested: bool) -> None:
    name = "Gemma3ForCausalLM" if nested else "LlamaForCausalLM"
    rotary: Any = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
    found = getattr(transformers, name)
    config = CONFIG_MAPPING["gemma3_text" if nested else "llama"]()
    assert onnx._refusal(found, config) is None
    config.rope_parameters = {"full_attention": rotary, "sliding_attention": {}} if nested else rotary
    assert "no rope_type dynamic" in str(onnx._refusal(found, config))


def test_a_model_without_cache_is_refused_before_work(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    config = CONFIG_MAPPING["mamba"](vocab_size=16, hidden_size=8, num_hidden_layers=1, state_size=2)
    with pytest.raises(PruneError, match="onnx carries (models with a key-value cache|keys and values only)"):
        onnx.save(AutoModelForCausalLM.from_config(config), {}, tmp_path / "onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_config_beside_the_graph_loads(exported: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    shutil.copytree(exported[0], tmp_path / "copy")
    assert AutoConfig.from_pretrained(tmp_path / "copy").num_hidden_layers == 2
