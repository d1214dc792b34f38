"""Checkpoints whose layers differ: a `model_type` of their own, so that nothing stock loads them by mistake.

The config states each layer in transformers' own words (`per_layer_config`); the classes build the stock model and
narrow its layers. Importing `prune` registers them with the Auto classes (register.py).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.pytorch_utils import Conv1D

from prune.model import family as families
from prune.model.family import PREFIX, Family, extents
from prune.model.halves import leave_out

# These classes read the widest value on purpose and narrow each layer after; the warning is for code that does not.
logging.getLogger("transformers.integrations.heterogeneity.configuration_utils").addFilter(
    lambda record: "Reading global config value for per-layer" not in str(record.msg)
)


# half of a layer -> the numbers that it holds
HELD = {"attention": ("heads", "kv_heads"), "mlp": ("channels", "experts", "expert_channels")}


@cache
def config_class(family_name: str) -> type[PreTrainedConfig]:
    """The family's config class for layers that differ, e.g. PruneLlamaConfig with model_type "prune_llama"."""
    stock = CONFIG_MAPPING[family_name]
    body = {"model_type": PREFIX + family_name, "__module__": __name__, "__doc__": f"{stock.__name__} by layer."}
    return type(f"Prune{stock.__name__}", (stock,), body)


def model_class(family_name: str, stock: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The stock class with layers as narrow as its config says, e.g. PruneLlamaForCausalLM; the same one every time."""
    if (family_name, stock.__name__) not in _CLASSES:
        _CLASSES[family_name, stock.__name__] = _model_class(family_name, stock)
    return _CLASSES[family_name, stock.__name__]


_CLASSES: dict[tuple[str, str], type[PreTrainedModel]] = {}


def _model_class(family_name: str, stock: type[PreTrainedModel]) -> type[PreTrainedModel]:
    family = families.of(family_name)

    def __init__(self: PreTrainedModel, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        stock.__init__(self, config, *args, **kwargs)
        narrow(self, family, layer_sizes(family, config))

    body = {"__init__": __init__, "config_class": config_class(family_name), "__module__": __name__}
    # The class's `config` annotation is what transformers reads the config class from.
    body["__annotations__"] = {"config": config_class(family_name)}
    return type(f"Prune{stock.__name__}", (stock,), body)


def layer_sizes(family: Family, config: PreTrainedConfig) -> list[dict[str, int]]:
    """Every layer's heads, kv_heads, channels, experts and head_dim as the config states them.

    `attention` and `mlp` are 0 where the config says to skip them, and so is what they would hold.
    """
    config.allow_global_per_layer_attribute_access = True
    head_dim = families.numbers(family, config)["head_dim"]
    found = []
    for layer in config.per_layer_config:  # resolved: overrides over the common values
        own = {"channels": 0, "experts": 0, "expert_channels": 0, **families.numbers(family, layer)}
        skipped = [half for half in HELD if half in (getattr(layer, "skip", None) or ())]
        empty = dict.fromkeys((number for half in skipped for number in HELD[half]), 0)
        found.append({**own, "head_dim": head_dim, **{half: int(half not in skipped) for half in HELD}, **empty})
    return found


def overrides(family: Family, sizes: Mapping[str, int]) -> dict[str, Any]:
    """One layer's entry in `per_layer_config`; `skip` names the halves that are left out."""
    skipped = [half for half in HELD if not sizes[half]]
    absent = {number for half in skipped for number in HELD[half]}
    own: dict[str, Any] = {family.sizes[number]: sizes[number] for number in family.structural if number not in absent}
    return {**own, "skip": skipped} if skipped else own


def narrow(model: nn.Module, family: Family, sizes: list[dict[str, int]]) -> None:
    """Shrink each layer's parameters to `sizes`, in place; what is kept are the first positions."""
    path = family.layers if _has(model, family.layers) else family.layers.split(".", 1)[1]
    layers = model.get_submodule(path)
    assert isinstance(layers, nn.ModuleList) and len(layers) == len(sizes), path
    for index, (layer, own) in enumerate(zip(layers, sizes, strict=True)):
        for half in (half for half in family.sublayers if not own[half]):
            leave_out(layer, family.sublayers[half], index)
        for module in family.configured:
            layer.get_submodule(module).config = model.config.per_layer_config[index]  # type: ignore[union-attr, index]
        for part in (part for kind in family.parts.values() for part in kind):
            length = sum(extents(own)[segment] for segment in part.segments)
            if length or "experts" not in family.sizes:  # a layer without experts has none of their parameters
                _shrink(layer, part.tensor, part.dim, length)
        set_attributes(layer, family, own)


def _has(model: nn.Module, path: str) -> bool:
    return hasattr(model, path.split(".", 1)[0])


def _shrink(layer: nn.Module, tensor: str, dim: int, length: int) -> None:
    path, leaf = tensor.rsplit(".", 1)
    module = layer.get_submodule(path) if _there(layer, path) else None
    parameter = getattr(module, leaf, None)
    if module is None or parameter is None or parameter.shape[dim] == length:
        return
    assert parameter.shape[dim] > length, (tensor, tuple(parameter.shape), length)
    data = parameter.data.narrow(dim, 0, length).clone()
    setattr(module, leaf, nn.Parameter(data, requires_grad=parameter.requires_grad))
    if isinstance(module, nn.Linear) and leaf == "weight":
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, Conv1D) and leaf == "weight":
        module.nx, module.nf = module.weight.shape


def _there(layer: nn.Module, path: str) -> bool:
    return any(name == path for name, _ in layer.named_modules())


def set_attributes(layer: nn.Module, family: Family, sizes: Mapping[str, int]) -> None:
    """Tell a layer's modules the numbers they keep beside their weights, such as query heads per key-value head."""
    known = {
        **sizes,
        **extents(sizes),
        "groups": sizes["heads"] // max(sizes["kv_heads"], 1),
    }
    for path, number in family.attributes.items():
        module, _, name = path.rpartition(".")
        if _there(layer, module):
            setattr(layer.get_submodule(module), name, known[number])
