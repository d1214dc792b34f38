"""A GGUF file holds the same model: as llama.cpp was shown to read it, or refused with what stands in the way."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf as package
import numpy as np
import pytest
import torch

import prune
from prune import files
from prune.errors import PruneError
from prune.exports import gguf
from prune.exports.job import Job
from prune.exports.llamacpp import container, tensors
from prune.exports.llamacpp.container import Kind
from prune.exports.llamacpp.target import target
from prune.forecast import FLOOR
from prune.model.model import Model
from prune.model.tensors import Tensors
from prune.remove.cut import cut
from tests.exports import ggufs
from tests.tiny import tiny_model

GOLDEN = json.loads(ggufs.GOLDEN.read_text())


def written(model: Model, folder: Path, dtype: Any = "f32") -> tuple[dict[str, Any], dict[str, container.Written]]:
    folder.mkdir()
    record = gguf.export(Job(model, folder), dtype=dtype)
    assert list(record["files"]) == files.names(folder) == [f"model-{dtype}.gguf"]
    return container.read(folder / f"model-{dtype}.gguf")


@pytest.mark.parametrize("name", ggufs.MODELS)
def test_the_file_that_llama_cpp_read_and_the_tokens_it_gave(name: str, tmp_path: Path) -> None:
    """`content` is of the very file whose tokens and log-probabilities were compared (tests/peers)."""
    model = ggufs.opened(name, tmp_path / "model")
    written(model, tmp_path / "gguf")
    assert ggufs.digest(tmp_path / "gguf" / "model-f32.gguf") == GOLDEN[name]["content"]
    tokens = GOLDEN[name]["tokens"]
    assert len(tokens) == ggufs.COUNT
    assert ggufs.followed(prune.load(model, dtype=torch.float32), tokens) == tokens


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return prune.open(ggufs.folder("llama", tmp_path_factory.mktemp("llama") / "model"))


def data(path: Path, name: str) -> np.ndarray:
    """A tensor's values, read by the package that others read with."""
    (found,) = [tensor for tensor in package.GGUFReader(path).tensors if tensor.name == name]
    return package.quants.dequantize(found.data, found.tensor_type)


def test_what_is_written_is_the_model(llama: Model, tmp_path: Path) -> None:
    """Every tensor with its values, the rows of queries and keys in another order."""
    written(llama, tmp_path / "gguf")
    path = tmp_path / "gguf" / "model-f32.gguf"
    for ours, theirs in {
        "model.embed_tokens": "token_embd",
        "lm_head": "output",
        "model.norm": "output_norm",
        "model.layers.1.self_attn.v_proj": "blk.1.attn_v",
        "model.layers.1.self_attn.o_proj": "blk.1.attn_output",
        "model.layers.2.mlp.down_proj": "blk.2.ffn_down",
        "model.layers.2.post_attention_layernorm": "blk.2.ffn_norm",
    }.items():
        assert np.array_equal(data(path, f"{theirs}.weight"), llama.tensors.read(f"{ours}.weight").numpy())
    queries = llama.tensors.read("model.layers.0.self_attn.q_proj.weight")
    assert not np.array_equal(data(path, "blk.0.attn_q.weight"), queries.numpy())
    assert np.array_equal(np.sort(data(path, "blk.0.attn_q.weight"), 0), queries.sort(0).values.numpy())


def test_turning_neighbours_equals_turning_halves() -> None:
    """Scores of permuted queries and keys under llama.cpp's rotation are those of the others under transformers'."""
    heads, width, positions = 2, 8, 5
    q, k = torch.randn(2, heads * width, positions, generator=torch.Generator().manual_seed(0))
    angles = torch.arange(positions) * 100.0 ** -(torch.arange(0, width, 2) / width)[:, None]  # (pairs, positions)
    cos, sin = angles.cos(), angles.sin()

    def halves(x: torch.Tensor) -> torch.Tensor:  # (heads, width, positions)
        one, two = x.reshape(heads, 2, width // 2, positions).unbind(1)
        return torch.cat([one * cos - two * sin, two * cos + one * sin], 1)

    def neighbours(x: torch.Tensor) -> torch.Tensor:
        one, two = x.reshape(heads, width // 2, 2, positions).unbind(2)
        return torch.stack([one * cos - two * sin, two * cos + one * sin], 2).reshape(heads, width, positions)

    permuted = [tensors._permute(lambda x=x: x, heads) for x in (q, k)]  # type: ignore[misc]
    ours = torch.einsum("hdi,hdj->hij", *(neighbours(x) for x in permuted))
    assert torch.allclose(ours, torch.einsum("hdi,hdj->hij", halves(q), halves(k)), atol=1e-5)
    assert not torch.allclose(ours, torch.einsum("hdi,hdj->hij", neighbours(q), neighbours(k)), atol=1e-1)


@pytest.mark.parametrize(("dtype", "error"), [("f32", 0.0), ("f16", 2**-11), ("bf16", 2**-8), ("q8_0", 1 / 127)])
def test_types_are_as_exact_as_they_can_be(dtype: str, error: float, llama: Model, tmp_path: Path) -> None:
    keys, found = written(llama, tmp_path / "gguf", dtype)
    assert keys["general.file_type"] == {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}[dtype]
    kind = Kind[dtype.upper()]
    for name, tensor in found.items():
        assert tensor.kind is (Kind.F32 if "norm" in name else kind), name
    weight = llama.tensors.read("model.layers.1.self_attn.v_proj.weight")
    value = data(tmp_path / "gguf" / f"model-{dtype}.gguf", "blk.1.attn_v.weight")
    block = weight.reshape(-1, 32).abs().amax(1, keepdim=True).expand(-1, 32).reshape(weight.shape)
    scale = (block if dtype == "q8_0" else weight.abs()).numpy()
    assert (np.abs(value - weight.numpy()) <= error * scale + 1e-12).all()


def test_quantised_rows_are_filled_up_with_nothing(llama: Model, tmp_path: Path) -> None:
    """40 channels become 64: blocks are of 32. What is added is zero on both sides."""
    keys, found = written(llama, tmp_path / "gguf", "q8_0")
    path = tmp_path / "gguf" / "model-q8_0.gguf"
    assert keys["llama.feed_forward_length"] == 64
    assert found["blk.0.ffn_up.weight"].shape == (64, 64) == found["blk.0.ffn_down.weight"].shape
    assert not data(path, "blk.0.ffn_up.weight")[40:].any() and not data(path, "blk.0.ffn_down.weight")[:, 40:].any()
    assert data(path, "blk.0.ffn_gate.weight")[:40].all(1).any()


def test_rows_that_no_block_divides_are_half_precision(tmp_path: Path) -> None:
    tiny_model("llama", vocab_size=400).save_pretrained(tmp_path / "model")  # of width 48
    ggufs.byte_level().save_pretrained(tmp_path / "model")
    (tmp_path / "gguf").mkdir()
    record = gguf.export(Job(prune.open(tmp_path / "model"), tmp_path / "gguf"), dtype="q8_0")
    assert any("are f16: their rows are no multiple of 32" in line for line in record["warnings"])
    found = container.read(tmp_path / "gguf" / "model-q8_0.gguf")[1]
    assert found["blk.0.attn_q.weight"].kind is Kind.F16 and found["blk.0.ffn_down.weight"].kind is Kind.Q8_0


def test_layers_that_differ_are_stated_layer_by_layer(tmp_path: Path) -> None:
    keys, found = written(ggufs.opened("llama by layer", tmp_path / "model"), tmp_path / "gguf")
    assert keys["general.architecture"] == "deci"
    assert keys["deci.attention.head_count"] == [4, 8, 2]
    assert keys["deci.attention.head_count_kv"] == [2, 4, 1]
    assert keys["deci.feed_forward_length"] == [40, 20, 40]
    assert found["blk.2.attn_q.weight"].shape == (16, 64) and found["blk.1.ffn_up.weight"].shape == (20, 64)


def without(model: Model, layer: int, part: str) -> Model:
    """The model as if a sublayer and its norm were gone."""
    norm = {"self_attn": "input_layernorm", "mlp": "post_attention_layernorm"}[part]
    start = model.layer(layer)
    gone = (f"{start}.{part}.", f"{start}.{norm}.")
    info = {name: found for name, found in model.tensors.info.items() if not name.startswith(gone)}
    return replace(model, tensors=Tensors(info, model.tensors.read))


def test_sublayers_that_are_gone(llama: Model, tmp_path: Path) -> None:
    """No attention is said by a count of 0, but in the first layer by a head of zeros; no MLP by a channel of zeros."""
    model = without(without(without(llama, 0, "self_attn"), 1, "self_attn"), 2, "mlp")
    keys, found = written(model, tmp_path / "gguf")
    path = tmp_path / "gguf" / "model-f32.gguf"
    assert keys["deci.attention.head_count"] == [1, 0, 8]
    assert keys["deci.attention.head_count_kv"] == [1, 0, 4]
    assert keys["deci.feed_forward_length"] == [40, 40, 1]
    assert not [name for name in found if name.startswith("blk.1.attn")]
    for name in ("blk.0.attn_output", "blk.0.attn_q", "blk.2.ffn_down", "blk.2.ffn_up"):
        assert not data(path, f"{name}.weight").any()
    assert data(path, "blk.2.ffn_norm.weight").all() and data(path, "blk.0.attn_norm.weight").all()


def test_tensors_are_read_one_at_a_time(llama: Model, tmp_path: Path) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def read(name: str) -> torch.Tensor:
        nonlocal most
        tensor = llama.tensors.read(name).clone()
        alive.append(weakref.ref(tensor))
        most = max(most, sum(found() is not None for found in alive))
        return tensor

    watched = replace(llama, tensors=Tensors(llama.tensors.info, read))
    written(watched, tmp_path / "gguf")
    assert len(alive) == len(llama.tensors.info) and most <= 2


def test_the_same_bytes_every_time(llama: Model, tmp_path: Path) -> None:
    for name in ("one", "two"):
        written(llama, tmp_path / name, "q8_0")
    assert files.hashes(tmp_path / "one") == files.hashes(tmp_path / "two")


def test_the_tied_head_is_left_out(tmp_path: Path) -> None:
    _, found = written(ggufs.opened("llama tied", tmp_path / "model"), tmp_path / "gguf")
    assert "output.weight" not in found and "token_embd.weight" in found


def test_values_beyond_half_precision_are_refused_and_leave_nothing(llama: Model, tmp_path: Path) -> None:
    def read(name: str) -> torch.Tensor:
        return llama.tensors.read(name) * (1e6 if "down" in name else 1)

    model = replace(llama, tensors=Tensors(llama.tensors.info, read))
    with pytest.raises(PruneError, match="ffn_down.weight holds values beyond 65504, which f16 has not; take bf16"):
        prune.export(model, tmp_path / "out", format="gguf", dtype="f16")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_gives_back_other_bytes_is_noticed(
    llama: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = package.GGUFWriter.close

    def spoil(writer: package.GGUFWriter) -> None:
        writer.fout[0].seek(-1000, 2)
        writer.fout[0].write(b"\x01")
        close(writer)

    monkeypatch.setattr(package.GGUFWriter, "close", spoil)
    with pytest.raises(PruneError, match="the disk gave back other bytes than were written"):
        prune.export(llama, tmp_path / "out", format="gguf")
    assert list(tmp_path.iterdir()) == []


BY_LAYER = {"layers.0.heads": [1, 2]}


@pytest.mark.parametrize(
    ("kind", "changes", "plan", "why"),
    [
        ("gpt2", {"n_embd": 48, "n_head": 4, "n_layer": 1}, {}, "gguf carries causal language models of gemma"),
        ("qwen3", {}, BY_LAYER, "as qwen3: it reads the first layer's sizes for all layers, and these differ"),
        ("mixtral", {}, BY_LAYER, "as llama: it reads the first layer's sizes for all layers"),
        ("qwen3", {"attention_bias": True}, {}, "it has no place for the bias of self_attn.k_proj, self_attn.o_proj"),
        ("qwen3", {"rope_parameters": ggufs.ROPES["yarn"]}, {}, "no place for rotary positions of type yarn"),
        ("smollm3", {"num_hidden_layers": 5}, {"layers": [0, 3, 4]}, "it leaves positions out of every 4th layer"),
        ("gemma2", {"tie_word_embeddings": False}, {}, "as gemma2: it has no head apart from the embedding"),
        ("gemma3_text", {"tie_word_embeddings": True}, {"layers": [1, 2]}, None),
        (
            "gemma3_text",
            {"num_hidden_layers": 7, "tie_word_embeddings": True},
            {"layers": [0, 5, 6]},
            "every 6th layer",
        ),
        ("llama", {"hidden_act": "gelu"}, {}, "its activation is silu, not gelu"),
        (
            "qwen2",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            BY_LAYER,
            "as qwen2: it reads the first layer's sizes for all layers, and these differ; as llama: it reads the first"
            " layer's sizes for all layers, and these differ; as deci: its rotary positions turn a head's whole width",
        ),
    ],
)
def test_refused_with_what_stands_in_the_way(
    kind: str, changes: dict[str, Any], plan: dict[str, list[int]], why: str | None
) -> None:
    model = cut(prune.open(tiny_model(kind, **changes)), plan)
    reason = gguf.check(model)
    assert (reason is None) if why is None else (why in str(reason))


def test_a_window_is_the_context_where_there_is_no_place_for_it(tmp_path: Path) -> None:
    model = ggufs.opened("mistral window", tmp_path / "model")
    found = target(model)
    assert found.context == 64
    assert found.notes == ("the context is the sliding window of 64 tokens, which llama does not have",)


def test_dropped_layers_of_gemma2_keep_to_the_window(tmp_path: Path) -> None:
    """Its windows no longer stand in every second layer; within a window's reach that makes no difference."""
    whole = prune.open(ggufs.folder("gemma2", tmp_path / "model"))
    assert target(whole).context == 128
    assert target(cut(whole, {"layers": [0, 2, 3]})).context == 24


def test_through_a_recipe(tmp_path: Path) -> None:
    steps = [{"remove": {"what": "channels", "ratio": 0.25, "criterion": "magnitude"}}]
    steps += [{"export": {"format": "gguf", "dtype": dtype}} for dtype in ("f16", "q8_0")]
    recipe = {"model": "bundled", "output": tmp_path / "out", "steps": steps}
    needs = prune.check(recipe).steps[1]["record"]["needs"]
    assert needs["memory"] - FLOOR == 12 * 4096 * 192  # three copies of the embedding, not the model
    result = prune.apply(recipe)
    assert result.steps[1]["record"]["architecture"] == "llama"
    assert {"gguf-f16/model-f16.gguf", "gguf-q8_0/model-q8_0.gguf"} <= set(files.names(tmp_path / "out"))
    assert prune.verify(tmp_path / "out") == []


def test_a_recipe_that_cannot_end_in_a_file_is_refused_before_it_runs(tmp_path: Path) -> None:
    tiny_model("bloom", n_layer=2, n_head=4).save_pretrained(tmp_path / "model")
    recipe = {"model": str(tmp_path / "model"), "steps": [{"export": {"format": "gguf"}}]}
    with pytest.raises(PruneError, match="gguf carries causal language models of .*; not BloomForCausalLM"):
        prune.check(recipe)
    recipe["steps"] = [{"export": {"format": "gguf", "dtype": "q4_k"}}]
    with pytest.raises(PruneError, match="choices: bf16, f16, f32, q8_0"):
        prune.check(recipe)
