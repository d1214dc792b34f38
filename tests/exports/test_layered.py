"""A layer of each kind is traced, and the graph that is written of it computes what every layer computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnxscript import ir
from transformers import PreTrainedModel

import prune
from prune.exports import layered, onnx
from prune.model import tracing
from tests.tiny import tiny_model

PATTERN = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"]


def windows() -> PreTrainedModel:
    """Two kinds of layers, told apart by what a config and a module say; norms that add 1 to their weights."""
    return tiny_model("gemma2", num_hidden_layers=5, layer_types=PATTERN, sliding_window=6, query_pre_attn_scalar=6)


def differing() -> PreTrainedModel:
    """Two kinds, told apart by the shapes of their weights."""
    model = prune.open(tiny_model("llama", num_hidden_layers=4, attention_bias=True))
    plan = {
        "layers.1.heads": [0, 2],
        "layers.2.heads": [1, 3],
        "layers.1.channels": [3, 5],
        "layers.2.channels": [2, 8],
    }
    return prune.load(prune.cut(model, plan)).eval()


KINDS = {"windows": (windows, [0, 1, 0, 0, 1]), "differing": (differing, [0, 1, 1, 0])}


@pytest.mark.parametrize("name", KINDS)
def test_a_graph_of_all_layers_is_made_of_one_of_each_kind(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its results are compared with PyTorch's inside, at each position, with padding and in pieces."""
    make, first = KINDS[name]
    model, traced, made = make(), list[int](), list[tracing.Graph]()
    whole, graph = tracing.traced, onnx._graph

    def counted(ports: tracing.Ports, **options: Any) -> tracing.Graph:
        traced.append(len([one for one in ports.outputs if one.startswith("leaves.")]))
        return whole(ports, **options)

    monkeypatch.setattr(tracing, "traced", counted)
    monkeypatch.setattr(onnx, "_graph", lambda *given: made.append(graph(*given)) or made[-1])
    record = onnx.save(model, {}, tmp_path / "onnx")
    assert traced == [2]
    assert record["parity"]["max_difference"] < 5e-5
    assert record["parity"]["greedy_tokens"] == [80, 80]
    assert list(made[0].ends) == [f"model.layers.{index}" for index in range(len(first))]
    assert layered._stack(model, "model.layers", whole=False).first == tuple(first.index(kind) for kind in first)
    stored = {
        value.name: value.const_value.numpy()
        for value in ir.load(tmp_path / "onnx" / "model.onnx").graph.initializers.values()
    }
    for layer, module in enumerate(model.model.layers):
        (found,) = [array for key, array in stored.items() if f"layers.{layer}.mlp.down_proj.weight" in key]
        assert np.array_equal(found, module.mlp.down_proj.weight.detach().numpy().T)


def test_layers_that_were_wrongly_taken_for_one_kind_are_all_traced(tmp_path: Path) -> None:
    """GPT-2 that divides its scores by the number of a layer, with nothing said of a layer."""
    changes = {"num_hidden_layers": 2, "n_positions": 64, "n_embd": 48, "scale_attn_by_inverse_layer_idx": True}
    model = tiny_model("gpt2", **changes)
    made: list[tracing.Graph] = []
    graph = onnx._graph
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layered, "_description", lambda *_: ())
        patch.setattr(onnx, "_graph", lambda *given: made.append(graph(*given)) or made[-1])
        record = onnx.save(model, {}, tmp_path / "onnx")
    assert [one.repeats for one in made] == [True, False]
    start = "every layer was traced: with one traced for several the graph differs from PyTorch: logits by "
    assert record["notes"][0].startswith(start)
    assert record["parity"]["max_difference"] < 5e-5


def test_the_model_is_not_changed() -> None:
    model = windows()
    settings, layers = model.config.to_dict(), list(model.model.layers)
    short = layered._shortened(model, layered._stack(model, "model.layers", whole=False))
    assert len(short.model.layers) == 2 and short.config.num_hidden_layers == 2
    assert [layer.self_attn.layer_idx for layer in short.model.layers] == [0, 1]
    assert short.model.layers[1].mlp.up_proj.weight is model.model.layers[1].mlp.up_proj.weight
    assert model.config.to_dict() == settings and list(model.model.layers) == layers
    assert [layer.self_attn.layer_idx for layer in layers] == [0, 1, 2, 3, 4]
    assert torch.equal(short.model.embed_tokens.weight, model.model.embed_tokens.weight)
