"""A causal language model as a function of plain tensors: its key-value cache goes in and comes out, layer by layer."""

from __future__ import annotations

import inspect
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from prune.errors import PruneError
from prune.model.caching import cache_argument, takes_cache
from prune.model.graph import positions
from prune.model.tracing import Dims, Ports

BATCH, NEW, PAST = "batch_size", "sequence_length", "past_sequence_length"
TOTAL = f"{PAST} + {NEW}"
TOKENS: dict[str, Dims] = {"input_ids": (BATCH, NEW), "attention_mask": (BATCH, TOTAL), "position_ids": (BATCH, NEW)}

Layers = dict[int, tuple[tuple[int, int], tuple[int, int]]]  # layer -> (heads, width) of its keys and of its values


def decodes(architecture: type[PreTrainedModel]) -> bool:
    """Whether it is a causal language model, stock or with layers that differ."""
    return any(one.__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() for one in architecture.__mro__)


def refusal(architecture: type[PreTrainedModel], config: Any) -> str | None:
    """Why it cannot be carried with its cache, or None."""
    name, taken = architecture.__name__, inspect.signature(architecture.forward).parameters
    if not {"input_ids", "attention_mask"} <= set(taken) or not takes_cache(architecture):
        return f"onnx carries models with a key-value cache, and {name}'s forward takes none"
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or ())
    other = sorted(kind for kind in kinds if not kind.endswith("attention") or kind.startswith("linear"))
    if other or getattr(architecture, "_is_stateful", False):
        return f"onnx carries keys and values only, and {name} keeps another state ({', '.join(other) or 'recurrent'})"
    if "dynamic" in _rotary(config):
        return "onnx carries no rope_type dynamic, whose frequencies are computed anew as the text grows"
    return None


def _rotary(config: Any) -> set[Any]:
    """The types of a config's rotary positions: one, or one for each kind of layer."""
    given = getattr(config.get_text_config(), "rope_parameters", None) or {}
    return {one.get("rope_type") for one in (given, *given.values()) if isinstance(one, dict)}


def ports(model: PreTrainedModel) -> Ports:
    """The model under Optimum's names; one graph serves prefill (past length 0) and decoding."""
    layers = _cached_layers(model)
    past, present = (_cache_names(prefix, layers) for prefix in ("past_key_values", "present"))
    shapes = list(chain.from_iterable(layers.values()))
    dims: dict[str, Dims] = {"logits": (BATCH, NEW, _vocabulary(model)), **TOKENS}
    for names, length in ((past, PAST), (present, TOTAL)):
        dims |= {name: (BATCH, heads, length, width) for name, (heads, width) in zip(names, shapes, strict=True)}
    return Ports(_Flat(model, list(layers), past), _sample(model, past, shapes), ["logits", *present], dims)


class _Flat(nn.Module):
    """The model as a function of plain tensors; the cache is made and taken apart inside."""

    def __init__(self, model: PreTrainedModel, layers: list[int], past: list[str]):
        super().__init__()
        self.model, self.layers, self.past = model, layers, past

    def forward(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        held = [inputs[name] for name in self.past]
        pairs = dict(zip(self.layers, zip(held[::2], held[1::2], strict=True), strict=True))
        # A layer without attention holds nothing, but has its place in the cache.
        cache = DynamicCache([pairs.get(layer, (None, None)) for layer in range(max(self.layers) + 1)])
        tokens = {name: value for name, value in inputs.items() if name not in self.past}
        output = self.model(**tokens, **{cache_argument(self.model): cache}, use_cache=True)
        present: Any = [cache.layers[layer] for layer in self.layers]
        return [output.logits, *chain.from_iterable((layer.keys, layer.values) for layer in present)]


@torch.no_grad()
def _cached_layers(model: PreTrainedModel) -> Layers:
    """Which layers keep keys and values, and of what shapes: read from a forward pass, since configs may not say."""
    cache = DynamicCache()
    model(input_ids=torch.zeros(1, 2, dtype=torch.long), **{cache_argument(model): cache}, use_cache=True)
    found: Layers = {}
    for index, layer in enumerate(cache.layers):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is not None and values is not None:
            found[index] = ((keys.shape[1], keys.shape[3]), (values.shape[1], values.shape[3]))
    if not found:
        raise PruneError(
            f"onnx carries models with a key-value cache, and {type(model).__name__} fills none", where="onnx"
        )
    return found


def _vocabulary(model: PreTrainedModel) -> int:
    head: Any = model.get_output_embeddings()
    return int(head.weight.shape[0])


def _sample(model: PreTrainedModel, past: list[str], shapes: list[tuple[int, int]]) -> dict[str, Tensor]:
    batch, new, held = 2, 3, 4
    mask = torch.ones(batch, held + new, dtype=torch.long)
    tokens = {"input_ids": torch.zeros(batch, new, dtype=torch.long), "attention_mask": mask}
    if "position_ids" in inspect.signature(model.forward).parameters:
        tokens["position_ids"] = positions(mask)[:, held:]
    empty = [torch.zeros(batch, heads, held, width, dtype=model.dtype) for heads, width in shapes]
    return {**tokens, **dict(zip(past, empty, strict=True))}


def _cache_names(prefix: str, layers: Layers) -> list[str]:
    return [f"{prefix}.{layer}.{part}" for layer in layers for part in ("key", "value")]
