"""A model's tensors with nothing fused: query, key and value apart, gate and up apart, experts stacked for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from torch import Tensor

from prune.model.model import Model
from prune.model.tensors import Info, Tensors


def plain(model: Model) -> Tensors:
    """The model's tensors under Llama's names. Nothing is read yet."""
    info: dict[str, Info] = {}
    reads: dict[str, Callable[[], Tensor]] = {}
    for name in model.tensors.info:
        for new, found, read in _parts(model, name):
            info[new], reads[new] = found, read
    return Tensors(info, lambda name: reads[name]())


def linears(names: Iterable[str]) -> set[str]:
    """Module names without their layer: model.layers.3.mlp.up_proj -> mlp.up_proj."""
    return {name.split(".", 3)[-1] for name in names}


def _parts(model: Model, name: str) -> Iterator[tuple[str, Info, Callable[[], Tensor]]]:
    found = model.tensors.info[name]
    cuts = _cuts(model, name)
    if not cuts:
        yield name, found, partial(model.tensors.read, name)
        return
    dim = 1 if "experts" in name else 0
    start = 0
    for new, length in cuts:
        shape = (*found.shape[:dim], length, *found.shape[dim + 1 :])
        yield new, Info(shape, found.dtype), partial(_narrow, model, name, dim, start, length)
        start += length


def _narrow(model: Model, name: str, dim: int, start: int, length: int) -> Tensor:
    return model.tensors.read(name).narrow(dim, start, length)


def _cuts(model: Model, name: str) -> list[tuple[str, int]]:
    """The parts of a fused tensor, with their rows; none where nothing is fused."""
    path, _, leaf = name.rpartition(".")
    if path.endswith("self_attn.qkv_proj"):
        own = model.sizes(int(name.split(".")[2]))
        widths = {"q": own["heads"], "k": own["kv_heads"], "v": own["kv_heads"]}
        start = path.removesuffix("qkv_proj")
        return [(f"{start}{part}_proj.{leaf}", heads * own["head_dim"]) for part, heads in widths.items()]
    if path.endswith("mlp.gate_up_proj"):
        start, rows = path.removesuffix("gate_up_proj"), model.tensors.info[name].shape[0] // 2
        return [(f"{start}{part}_proj.{leaf}", rows) for part in ("gate", "up")]
    if name.endswith("mlp.experts.gate_up_proj"):
        start, rows = name.removesuffix("gate_up_proj"), model.tensors.info[name].shape[1] // 2
        return [(f"{start}{part}_proj.weight", rows) for part in ("gate", "up")]
    if name.endswith("mlp.experts.down_proj"):
        return [(f"{name}.weight", model.tensors.info[name].shape[1])]
    return []
