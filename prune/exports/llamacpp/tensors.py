"""A model's tensors as llama.cpp wants them: its names, row order, norms, and whole sublayers where some are gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import gguf
import torch
from torch import Tensor

from prune.exports.llamacpp.plain import plain
from prune.exports.llamacpp.target import Layer, Target
from prune.exports.llamacpp.target import layers as layers_of
from prune.model.model import Model
from prune.model.tensors import Info, Tensors

Read = Callable[[], Tensor]
ROWS, COLUMNS = ("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"  # of an MLP's channels, one expert's too


def padded(target: Target, multiple: int) -> Target:
    """The target with every MLP's channels filled up to a multiple; what is added is zero, so nothing changes."""
    found = (replace(own, channels=-(-own.channels // multiple) * multiple) for own in target.layers)
    return replace(target, layers=tuple(found))


def tensors(model: Model, target: Target) -> Tensors:
    """float32 tensors under llama.cpp's names, with the target's sizes. Nothing is read yet."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[target.architecture.name.upper()], len(target.layers))
    info: dict[str, Info] = {}
    reads: dict[str, Read] = {}
    factors = target.rope.factors
    if factors is not None:
        info["rope_freqs.weight"], reads["rope_freqs.weight"] = Info(tuple(factors.shape), factors.dtype), factors.clone
    for name, shape, read in _all(model, target):
        new = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert new is not None and new not in info, name
        info[new], reads[new] = Info(shape, torch.float32), read
    return Tensors(info, lambda name: reads[name]())


def _all(model: Model, target: Target) -> Iterator[tuple[str, tuple[int, ...], Read]]:
    """Llama's name, shape and reader of every tensor that is written."""
    source, found = plain(model), layers_of(model)
    present: set[str] = set()
    for name, info in source.info.items():
        layer = _layer(name)
        own = None if layer is None else found[layer]
        if own and ((_attends(name) and not own.heads) or (".mlp." in name and not own.channels)):
            continue  # what is left of a sublayer that is gone
        present.add(name)
        shape: tuple[int, ...] = info.shape
        read: Read = partial(_float, source, name)
        if own and layer is not None:
            shape, read = _in_layer(name, shape, read, own, target, target.layers[layer], source)
        if target.architecture.shifted and name.endswith("norm.weight"):
            read = partial(_plus_one, read)
        yield name, shape, read
    for layer, own in enumerate(target.layers):
        for name, shape in _expected(model, layer, own).items():
            if name not in present:
                yield name, shape, partial(torch.ones if "norm" in name else torch.zeros, shape)


def _layer(name: str) -> int | None:
    parts = name.split(".")
    return int(parts[2]) if parts[1] == "layers" else None


def _attends(name: str) -> bool:
    return ".self_attn." in name or ".input_layernorm." in name


def _in_layer(
    name: str, shape: tuple[int, ...], read: Read, own: Layer, target: Target, written: Layer, source: Tensors
) -> tuple[tuple[int, ...], Read]:
    """A layer's tensor with its channels padded, its rotary rows in order, and the scale of scores in its queries."""
    path, _, leaf = name.rpartition(".")
    module = path.split(".", 3)[3].replace("mlp.experts.", "mlp.")
    dim = len(shape) - 1 if module == COLUMNS or leaf == "bias" else len(shape) - 2
    if (module in ROWS or (module == COLUMNS and leaf == "weight")) and written.channels != own.channels:
        shape = (*shape[:dim], written.channels, *shape[dim + 1 :])
        read = partial(_pad, read, dim, written.channels)
    has_norm = f"{path.removesuffix('q_proj')}q_norm.weight" in source.info
    scales = module == "self_attn.q_norm" or (module == "self_attn.q_proj" and not has_norm)
    if target.architecture.permuted and module in ("self_attn.q_proj", "self_attn.k_proj"):
        read = partial(_permute, read, own.heads if "q_proj" in module else own.kv_heads)
    if scales and target.query_scale != 1.0:
        # a norm that multiplies by 1 + w is shifted afterwards
        by = _scale_shifted if target.architecture.shifted and module.endswith("norm") else _scale
        read = partial(by, read, target.query_scale)
    return shape, read


def _expected(model: Model, layer: int, own: Layer) -> dict[str, tuple[int, ...]]:
    """The tensors that every layer of the target must have, with their shapes."""
    start, width, head_dim = model.layer(layer), model.numbers["width"], model.numbers["head_dim"]
    found: dict[str, tuple[int, ...]] = {}
    if own.heads:
        queries, keys = own.heads * head_dim, own.kv_heads * head_dim
        shapes = {"q": (queries, width), "k": (keys, width), "v": (keys, width), "o": (width, queries)}
        found = {f"{start}.self_attn.{name}_proj.weight": shape for name, shape in shapes.items()}
        found[f"{start}.input_layernorm.weight"] = (width,)
    if not own.experts:
        rows, columns = (own.channels, width), (width, own.channels)
        found |= {f"{start}.{name}.weight": rows for name in ROWS} | {f"{start}.{COLUMNS}.weight": columns}
        found[f"{start}.post_attention_layernorm.weight"] = (width,)
    return found


def _float(source: Tensors, name: str) -> Tensor:
    return source.read(name).float()


def _plus_one(read: Read) -> Tensor:
    return read() + 1


def _scale(read: Read, scale: float) -> Tensor:
    return read() * scale


def _scale_shifted(read: Read, scale: float) -> Tensor:
    return (read() + 1) * scale - 1


def _pad(read: Read, dim: int, length: int) -> Tensor:
    tensor = read()
    shape = list(tensor.shape)
    shape[dim] = length - shape[dim]
    return torch.cat([tensor, tensor.new_zeros(shape)], dim)


def _permute(read: Read, heads: int) -> Tensor:
    """Rows of every head in llama.cpp's order: those that rotary positions turn together lie side by side."""
    tensor = read()
    return tensor.reshape(heads, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)
