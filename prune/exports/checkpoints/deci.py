"""Layers that differ as Deci's configs state them, which vLLM and llama.cpp's converter read.

Those readers have one count of query heads for all layers and MLPs as wide as a multiple of 256, so what is narrower is
filled up with zeros: heads whose outputs nothing reads, channels that give nothing. The sums stay the same. Sources:
vllm/model_executor/models/nemotron_nas.py of vLLM, DeciModel in llama.cpp's converter; tests/exports/test_hf.py has
a table of the fields.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from prune.errors import PruneError
from prune.exports.llamacpp.architectures import DECI
from prune.exports.llamacpp.plain import linears, plain
from prune.exports.llamacpp.target import Layer, carried, layers
from prune.model.model import Model
from prune.model.tensors import Info, Tensors

MULTIPLE = 256  # MLP widths that the readers' rounding leaves as they are
READ = ("default", "llama3")  # rotary scaling that both readers take
FILE = "configuration_decilm.py"
CODE = '''"""Deci's config with its blocks readable as attributes, which vLLM asks for."""

from transformers import LlamaConfig


class Block(dict):
    """A mapping whose keys are attributes too."""

    def __getattr__(self, name):
        if name not in self:
            raise AttributeError(name)
        return self[name]


class DeciLMConfig(LlamaConfig):
    model_type = "nemotron-nas"

    def __init__(self, block_configs=(), **values):
        super().__init__(**values)
        self.block_configs = [Block({half: Block(own) for half, own in block.items()}) for block in block_configs]
'''


@dataclass(frozen=True)
class Block:
    """One layer as it is written: key-value heads (0 for no attention) and channels."""

    kv_heads: int
    channels: int


@dataclass(frozen=True)
class Deci:
    """A model in Deci's words. `heads` are the query heads of every layer that has attention."""

    heads: int
    blocks: tuple[Block, ...]
    context: int
    notes: tuple[str, ...]


def deci(model: Model) -> Deci:
    """How a model is stated. Raises PruneError with what stands in the way; reads no weights."""
    target = carried(model, DECI)
    kind = model.config.rope_parameters["rope_type"]
    if kind not in READ:
        raise PruneError(f"Deci's readers do not take rotary scaling of type {kind}; choices: {', '.join(READ)}")
    width, head_dim, found = model.numbers["width"], model.numbers["head_dim"], layers(model)
    most = max((own.heads for own in found), default=1)
    heads, notes = width // head_dim, list(target.notes)
    if heads * head_dim != width or heads < most or any(not _fit(own, heads) for own in found if own.heads):
        heads = most
        while any(not _fit(own, heads) for own in found if own.heads):
            heads += 1
        notes.append(
            "llama.cpp's converter takes width / heads for a head's size, which is not so here: format gguf is"
        )
    blocks = tuple(_block(own, number, heads) for number, own in enumerate(found))
    return Deci(heads, blocks, target.context, tuple(notes))


def _fit(own: Layer, heads: int) -> int:
    """The fewest key-value heads, sharing all query heads equally, that hold a layer's; 0 where none do."""
    group = own.heads // own.kv_heads
    fitting = (n for n in range(own.kv_heads, heads + 1) if heads % n == 0 and heads // n >= group)
    return next(fitting, 0)


def _block(own: Layer, number: int, heads: int) -> Block:
    """The first layer must have attention, and every layer an MLP beside its attention: zeros where it has none."""
    kv_heads = _fit(own, heads) if own.heads else int(number == 0)
    return Block(kv_heads, -(-max(own.channels, 1) // MULTIPLE) * MULTIPLE)


def config(model: Model, found: Deci) -> dict[str, Any]:
    """config.json."""
    own, names = model.config, plain(model).info
    rope = dict(own.rope_parameters)
    biased = {part: any(f"{part}.bias" in name for name in names) for part in ("q_proj", "o_proj", "down_proj")}
    same = ("vocab_size", "rms_norm_eps", "hidden_act", "initializer_range", "tie_word_embeddings")
    ids = {f"{name}_token_id": getattr(own, f"{name}_token_id", None) for name in ("bos", "eos", "pad")}
    values = {
        **{name: getattr(own, name) for name in same},
        **ids,
        "architectures": ["DeciLMForCausalLM"],
        "auto_map": {"AutoConfig": f"{FILE.removesuffix('.py')}.DeciLMConfig"},
        "model_type": "nemotron-nas",
        "dtype": str(next(iter(names.values())).dtype).removeprefix("torch."),
        "hidden_size": model.numbers["width"],
        "head_dim": model.numbers["head_dim"],
        "num_hidden_layers": len(found.blocks),
        "num_attention_heads": found.heads,
        "num_key_value_heads": max(block.kv_heads for block in found.blocks),
        "intermediate_size": max(block.channels for block in found.blocks),
        "max_position_embeddings": found.context,
        "attention_bias": biased["o_proj"],  # of the output, and unless qkv_bias is there, of all four
        "qkv_bias": biased["q_proj"],
        "mlp_bias": biased["down_proj"],
        "rope_parameters": rope,
        "rope_theta": rope["rope_theta"],  # where readers looked before rope_parameters
        "rope_scaling": None if rope["rope_type"] == "default" else rope,
        "block_configs": [_stated(block, found.heads, model.numbers["width"]) for block in found.blocks],
    }
    length = rope.get("original_max_position_embeddings")
    return values | ({"original_max_position_embeddings": length} if length else {})


def _stated(block: Block, heads: int, width: int) -> dict[str, dict[str, Any]]:
    group = heads // block.kv_heads if block.kv_heads else None
    return {
        "attention": {"no_op": group is None, "n_heads_in_group": group, "replace_with_linear": False},
        "ffn": {"no_op": False, "ffn_mult": 1.5 * block.channels / width, "replace_with_linear": False},
    }


def tensors(model: Model, found: Deci) -> Tensors:
    """The model's tensors, filled up to the sizes that are stated. Nothing is read yet."""
    source, sizes = plain(model), layers(model)
    dtype = source.info["model.embed_tokens.weight"].dtype
    info: dict[str, Info] = {}
    reads: dict[str, Callable[[], Tensor]] = {}
    for name, own in source.info.items():
        layer = int(name.split(".")[2]) if name.startswith(f"{model.family.layers}.") else None
        block = None if layer is None else found.blocks[layer]
        if block and (".self_attn." in name or ".input_layernorm." in name) and not block.kv_heads:
            continue
        change = partial(_wider, name, sizes[layer], block, found.heads) if block and layer is not None else _same
        with torch.device("meta"):
            shape = tuple(change(torch.empty(own.shape)).shape)
        info[name], reads[name] = Info(shape, own.dtype), partial(_changed, source, name, change)
    for name, shape in _expected(model, found).items():
        if name not in info:
            info[name] = Info(shape, dtype)
            reads[name] = partial(torch.ones if "norm" in name else torch.zeros, shape, dtype=dtype)
    return Tensors(info, lambda name: reads[name]())


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _changed(source: Tensors, name: str, change: Callable[[Tensor], Tensor]) -> Tensor:
    return change(source.read(name))


def _wider(name: str, own: Layer, block: Block, heads: int, tensor: Tensor) -> Tensor:
    """A layer's tensor as its block states it."""
    module, leaf = name.split(".", 3)[3].rsplit(".", 1)
    dim = int(module in ("self_attn.o_proj", "mlp.down_proj"))
    if dim and leaf == "bias":  # outputs are as wide as the model
        return tensor
    if module.startswith("self_attn."):
        shared = module in ("self_attn.k_proj", "self_attn.v_proj")  # by the queries of a group
        before, after = (1, 1) if shared else (own.heads // own.kv_heads, heads // block.kv_heads)
        groups = _pad(tensor.unflatten(dim, (own.kv_heads, before, -1)), dim, block.kv_heads)
        return _pad(groups, dim + 1, after).flatten(dim, dim + 2)
    return _pad(tensor, dim, block.channels) if module.startswith("mlp.") else tensor


def _pad(tensor: Tensor, dim: int, length: int) -> Tensor:
    shape = list(tensor.shape)
    shape[dim] = length - shape[dim]
    return torch.cat([tensor, tensor.new_zeros(shape)], dim)


def _expected(model: Model, found: Deci) -> dict[str, tuple[int, ...]]:
    """The tensors that a layer has though the model's has none: a dead attention first, dead MLPs."""
    width, head_dim = model.numbers["width"], model.numbers["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, block in enumerate(found.blocks):
        start = model.layer(layer)
        if block.kv_heads:
            for part, heads in (("q", found.heads), ("k", block.kv_heads), ("v", block.kv_heads)):
                shapes[f"{start}.self_attn.{part}_proj.weight"] = (heads * head_dim, width)
            shapes[f"{start}.self_attn.o_proj.weight"] = (width, found.heads * head_dim)
            shapes[f"{start}.input_layernorm.weight"] = (width,)
        for part in ("gate", "up"):
            shapes[f"{start}.mlp.{part}_proj.weight"] = (block.channels, width)
        shapes[f"{start}.mlp.down_proj.weight"] = (width, block.channels)
        shapes[f"{start}.post_attention_layernorm.weight"] = (width,)
    biased = linears(name.removesuffix(".bias") for name in plain(model).info if name.endswith(".bias"))
    biases = {name: shape[:1] for name, shape in shapes.items() if linears([name.removesuffix(".weight")]) <= biased}
    return shapes | {name.removesuffix("weight") + "bias": shape for name, shape in biases.items()}
