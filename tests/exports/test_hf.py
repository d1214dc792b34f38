"""Layers that differ, for readers without prune: Deci's config, field by field, and the same logits from its fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaForCausalLM

import prune
from prune import cli, files
from prune.errors import PruneError
from prune.exports import hf
from prune.exports.checkpoints.deci import MULTIPLE
from prune.model.model import Model
from tests.exports import ggufs
from tests.exports.test_gguf import without
from tests.tiny import tiny_model, token_ids

VLLM = "vllm/model_executor/models/nemotron_nas.py"
VLLM_MODEL = "vllm/transformers_utils/model_arch_config_convertor.py"
LLAMACPP = "llama.cpp's DeciModel in its Hugging Face converter"
NAMES = ["llama", "llama wide heads", "llama without sublayers", "llama without the first attention"]
NAMES += [f"{kind} by layer" for kind in ("llama", "qwen2", "phi3")] + ["llama by layer biases", "llama narrower"]


def written(model: Model, folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    prune.export(model, folder, format="hf", as_="deci")
    return json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def stated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("deci")
    model = ggufs.opened("llama by layer biases", folder / "model")
    return (folder / "out", *written(without(model, 2, "self_attn"), folder / "out"))


# (field, who reads it and where, what it must be) for a model of 3 layers, width 64 and heads of 8, of which the first
# layer has 4 heads in 2 groups, the second 8 in 4 and 20 channels, and the third no attention
FIELDS: list[tuple[str, str, Any]] = [
    ("architectures", f"{VLLM}: the registry's name of DeciLMForCausalLM; {LLAMACPP}: register", ["DeciLMForCausalLM"]),
    ("model_type", f"{VLLM_MODEL}: NemotronNasModelArchConfigConvertor is chosen by it", "nemotron-nas"),
    (
        "auto_map.AutoConfig",
        "transformers: how a config of this model_type is built",
        "configuration_decilm.DeciLMConfig",
    ),
    (
        "hidden_size",
        f"{VLLM}: DeciLMDecoderLayer; {LLAMACPP}: add_embedding_length, key_length = hidden_size / heads",
        64,
    ),
    ("num_hidden_layers", f"{VLLM}: make_layers; {LLAMACPP}: block_count == len(block_configs)", 3),
    ("num_attention_heads", f"{VLLM}: num_heads, // n_heads_in_group for the others; {LLAMACPP}: _num_heads", 8),
    ("head_dim", "vllm/model_executor/models/llama.py: LlamaAttention; rope_dimension_count of " + LLAMACPP, 8),
    ("max_position_embeddings", f"{VLLM}: DeciLMDecoderLayer; {LLAMACPP}: add_context_length", 128),
    ("rms_norm_eps", f"{VLLM}: RMSNorm; {LLAMACPP}: add_layer_norm_rms_eps", 1e-6),
    ("hidden_act", f"{VLLM}: of LlamaMLP, which takes silu alone", "silu"),
    ("attention_bias", f"{VLLM}: bias_o_proj, and that of q, k, v unless qkv_bias is there", True),
    ("qkv_bias", f"{VLLM}: of q, k, v", True),
    ("mlp_bias", f"{VLLM}: of LlamaMLP", True),
    ("vocab_size", f"{VLLM}: VocabParallelEmbedding; {LLAMACPP}: add_vocab_size", 400),
    ("tie_word_embeddings", f"{VLLM}: DeciLMForCausalLM.load_weights skips lm_head", False),
    ("rope_parameters.rope_type", f"{VLLM}: get_rope; {LLAMACPP}: generate_extra_tensors", "llama3"),
    ("rope_parameters.rope_theta", f"{VLLM}: get_rope; {LLAMACPP}: add_rope_freq_base", 10000.0),
    ("rope_parameters.factor", f"{VLLM}: get_rope; {LLAMACPP}: generate_extra_tensors", 8.0),
    ("original_max_position_embeddings", f"{LLAMACPP}: generate_extra_tensors reads it outside rope_parameters", 32),
    ("block_configs.0.attention.no_op", f"{VLLM}: _is_no_op_attention; {VLLM_MODEL}: the first that is not", False),
    ("block_configs.0.attention.n_heads_in_group", f"{VLLM}: num_kv_heads; {LLAMACPP}: _num_kv_heads", 4),
    ("block_configs.0.attention.replace_with_linear", f"{LLAMACPP}: where n_heads_in_group is null", False),
    ("block_configs.0.ffn.no_op", f"{VLLM}: _is_no_op_ffn", False),
    (
        "block_configs.0.ffn.ffn_mult",
        f"{VLLM}, {LLAMACPP}: _ffn_mult_to_intermediate_size; a float, says an assert",
        6.0,
    ),
    ("block_configs.1.attention.n_heads_in_group", f"{VLLM}: num_kv_heads; {LLAMACPP}: _num_kv_heads", 2),
    ("block_configs.2.attention.no_op", f"{VLLM}: no self_attn, no input_layernorm", True),
    ("block_configs.2.attention.n_heads_in_group", f"{LLAMACPP}: null, with replace_with_linear false: no heads", None),
]


@pytest.mark.parametrize(("field", "source", "value"), FIELDS, ids=[field for field, _, _ in FIELDS])
def test_each_field_that_deci_readers_read(field: str, source: str, value: Any, stated: tuple[Path, Any, Any]) -> None:
    found: Any = stated[1]
    for part in field.split("."):
        found = found[int(part)] if part.isdigit() else found[part]
    assert found == value and type(found) is type(value), source


def width(ffn_mult: float, hidden_size: int) -> int:
    """Both readers' rule: two thirds of a multiple of the width, rounded up to a multiple of 256."""
    length = int(2 * ffn_mult * hidden_size / 3)
    return length + (256 - length % 256) % 256


def test_every_width_survives_the_readers_rounding() -> None:
    for hidden in (64, 192, 576, 2048, 2560, 3072, 4096, 5120, 8192):
        for channels in range(MULTIPLE, 30000, MULTIPLE):
            assert width(1.5 * channels / hidden, hidden) == channels


def test_the_shapes_are_those_that_the_fields_say(stated: tuple[Path, dict[str, Any], dict[str, torch.Tensor]]) -> None:
    _, config, weights = stated
    head_dim, heads = config["head_dim"], config["num_attention_heads"]
    for layer, block in enumerate(config["block_configs"]):
        group = block["attention"]["n_heads_in_group"]
        names = [name for name in weights if name.startswith(f"model.layers.{layer}.")]
        if group is None:
            assert not [name for name in names if "self_attn" in name or "input_layernorm" in name]
        else:
            assert weights[f"model.layers.{layer}.self_attn.q_proj.weight"].shape == (heads * head_dim, 64)
            assert weights[f"model.layers.{layer}.self_attn.v_proj.bias"].shape == (heads // group * head_dim,)
        channels = width(block["ffn"]["ffn_mult"], 64)
        assert weights[f"model.layers.{layer}.mlp.down_proj.weight"].shape == (64, channels)
        assert weights[f"model.layers.{layer}.mlp.up_proj.bias"].shape == (channels,)


def test_vllm_reads_blocks_as_attributes(stated: tuple[Path, Any, Any], tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(stated[0], trust_remote_code=True)
    assert isinstance(config, LlamaConfig) and type(config).__name__ == "DeciLMConfig"
    assert [block.attention.no_op for block in config.block_configs] == [False, False, True]
    assert [block.ffn.ffn_mult for block in config.block_configs] == [6.0, 6.0, 6.0]
    assert not hasattr(
        config.block_configs[0].ffn, "hidden_act"
    )  # vLLM asks, and takes the config's where there is none
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["block_configs"] == stated[1]["block_configs"]


def deci_logits(config: dict[str, Any], weights: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """What a reader computes that knows the fields and stock Llama layers, built to each block's sizes."""
    common = {key: config[key] for key in ("vocab_size", "hidden_size", "head_dim", "rms_norm_eps", "mlp_bias")}
    rope = config["rope_parameters"]
    heads = config["num_attention_heads"]
    body = LlamaForCausalLM(
        LlamaConfig(**common, num_hidden_layers=0, num_attention_heads=1, rope_parameters=rope)
    ).eval()
    outer = {name: weight for name, weight in weights.items() if ".layers." not in name}
    body.load_state_dict({"lm_head.weight": weights["model.embed_tokens.weight"], **outer})
    hidden = body.model.embed_tokens(ids)
    positions = torch.arange(ids.shape[1])[None]
    mask = torch.full((ids.shape[1],) * 2, float("-inf")).triu(1)[None, None]
    for layer, block in enumerate(config["block_configs"]):
        attends = not block["attention"]["no_op"]
        own = LlamaConfig(
            **common,
            num_attention_heads=heads,
            num_key_value_heads=heads // block["attention"]["n_heads_in_group"] if attends else heads,
            intermediate_size=width(block["ffn"]["ffn_mult"], config["hidden_size"]),
            attention_bias=config["attention_bias"] or config["qkv_bias"],
            rope_parameters=rope,
        )
        own._attn_implementation = "eager"
        module = LlamaDecoderLayer(own, 0).eval()
        if config["qkv_bias"] and not config["attention_bias"]:
            module.self_attn.o_proj.bias = None
        if not attends:
            module.self_attn, module.input_layernorm = Silent(), nn.Identity()
        start = f"model.layers.{layer}."
        state = {name.removeprefix(start): weight for name, weight in weights.items() if name.startswith(start)}
        module.load_state_dict(state)
        turned = body.model.rotary_emb(hidden, positions)
        hidden = module(hidden, attention_mask=mask, position_embeddings=turned)
    return body.lm_head(body.model.norm(hidden))


class Silent(nn.Module):
    def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        return torch.zeros_like(hidden_states), None


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_logits_are_the_same(name: str, tmp_path: Path) -> None:
    model = ggufs.opened(name, tmp_path / "model")
    ids = token_ids(2, 12)
    logits = deci_logits(*written(model, tmp_path / "out"), ids)
    assert torch.allclose(logits, prune.load(model)(input_ids=ids).logits, atol=1e-4)


@torch.no_grad()
def test_what_is_gone_has_biases_of_zero_where_the_others_have_some(tmp_path: Path) -> None:
    """vLLM makes a bias in every layer, and leaves what the checkpoint lacks as memory was."""
    whole = prune.open(ggufs.folder("llama biases", tmp_path / "model"))
    model = prune.cut(whole, {"attention": [1, 2], "mlp": [0, 2]})
    config, weights = written(model, tmp_path / "out")
    ids = token_ids(2, 12)
    assert torch.allclose(deci_logits(config, weights, ids), prune.load(model)(input_ids=ids).logits, atol=1e-4)
    for name in ("0.self_attn.q_proj", "0.self_attn.o_proj", "1.mlp.up_proj", "1.mlp.down_proj"):
        assert not weights[f"model.layers.{name}.bias"].any()


def test_what_the_readers_cannot_state_is_refused() -> None:
    yarn = prune.open(tiny_model("llama", rope_parameters=ggufs.ROPES["yarn"]))
    assert "do not take rotary scaling of type yarn; choices: default, llama3" in str(hf.check(yarn, as_="deci"))
    assert "deci cannot carry this qwen3" in str(hf.check(prune.open(tiny_model("qwen3")), as_="deci"))


def test_heads_of_another_size_come_with_a_warning(tmp_path: Path) -> None:
    model = ggufs.opened("llama wide heads", tmp_path / "model")
    record = prune.export(model, tmp_path / "out", format="hf", as_="deci")
    assert "llama.cpp's converter takes width / heads" in record["warnings"][0]


def test_through_a_recipe(tmp_path: Path) -> None:
    steps = [{"export": {"format": "hf", "as": "deci"}}]
    recipe = {"model": "bundled", "output": tmp_path / "out", "steps": steps}
    prune.check(recipe)
    assert prune.apply(recipe).steps[0]["options"] == {"format": "hf", "as": "deci", "code": False}
    assert {f"hf-deci/{name}" for name in ("config.json", "configuration_decilm.py", "model.safetensors")} <= set(
        files.names(tmp_path / "out")
    )
    line = ["export", "bundled", str(tmp_path / "hf"), "--format", "hf", "--set", "as=deci", "-q"]
    assert cli.run(line) == 0 and (tmp_path / "hf" / "configuration_decilm.py").is_file()
    recipe["steps"] = [{"export": {"format": "hf", "as": "dcei"}}]
    with pytest.raises(PruneError, match="as: unknown as 'dcei'; did you mean 'deci'?"):
        prune.check(recipe)
