"""The config that states a cut model's shapes: stock where stock transformers accepts it, by layer where not."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from prune.model import nonuniform
from prune.model.family import PREFIX, Family
from prune.model.model import Model

STRUCTURAL = ("heads", "kv_heads", "channels")


def accepts(model: Model, **numbers: int) -> bool:
    """Whether some stock config carries these numbers (heads, kv_heads, channels) in every layer."""
    return _stock(model.family, _with(model, numbers)) is not None


def shaped(
    model: Model, layers: Sequence[int], sizes: Sequence[Mapping[str, int]]
) -> tuple[PreTrainedConfig, type[PreTrainedModel]]:
    """The config and class for what is left: the kept layers (old indices) with the sizes of each.

    In order of preference: the family's own stock type, its alias (the same computation under another stock type), or
    the family's non-uniform type.
    """
    assert len(layers) == len(sizes) >= 1, (layers, sizes)
    values = _with(model, {"layers": len(layers)})
    for key in model.family.per_layer_lists:
        if isinstance(values.get(key), list):
            values[key] = [values[key][i] for i in layers]
    if all(all(own[n] == sizes[0][n] for n in STRUCTURAL) for own in sizes):
        uniform = {**values, **{model.family.sizes[n]: sizes[0][n] for n in STRUCTURAL}}
        found = _stock(model.family, uniform)
        if found is not None:
            return found, _class(model, found.model_type)
    values["model_type"] = PREFIX + model.family.model_type
    values["allow_global_per_layer_attribute_access"] = True
    values["per_layer_config"] = {i: nonuniform.overrides(model.family, own) for i, own in enumerate(sizes)}
    architecture = nonuniform.model_class(model.family.model_type, _stock_class(model.architecture))
    values["architectures"] = [architecture.__name__]
    return nonuniform.config_class(model.family.model_type).from_dict(values), architecture


def _with(model: Model, numbers: Mapping[str, int]) -> dict[str, Any]:
    """The model's config as a plain mapping of its stock type, with `numbers` changed and head_dim stated."""
    values = copy.deepcopy(model.config.to_dict())
    for key in ("per_layer_config", "allow_global_per_layer_attribute_access"):
        values.pop(key, None)
    values["model_type"] = model.family.model_type
    values["architectures"] = [_stock_class(model.architecture).__name__]
    # Without it, loaders divide the width by the number of heads and get it wrong.
    values["head_dim"] = model.numbers["head_dim"]
    values.update({model.family.sizes[number]: value for number, value in numbers.items()})
    return values


def _stock(family: Family, values: dict[str, Any]) -> PreTrainedConfig | None:
    """The stock config with these values, under the family's type or its alias; None when both refuse them."""
    own = _try(family.model_type, values)
    alias = family.alias
    if own is not None or alias is None:
        return own
    if any(values.get(key, wanted) != wanted for key, wanted in alias.requires.items()):
        return None
    same = {key: value for key, value in values.items() if key not in alias.drop}
    architectures = [_class_name(family, alias.model_type, name) for name in values["architectures"]]
    return _try(
        alias.model_type,
        {**same, **alias.settings, "model_type": alias.model_type, "architectures": architectures},
    )


def _try(model_type: str, values: dict[str, Any]) -> PreTrainedConfig | None:
    """The config itself decides what it accepts, so the rule cannot age."""
    try:
        return CONFIG_MAPPING[model_type].from_dict(values)
    except (ValueError, StrictDataclassError):
        return None


def _stock_class(architecture: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The stock class behind a class of ours, or the class itself."""
    ours = architecture.__module__ == nonuniform.__name__
    return architecture.__bases__[0] if ours else architecture


def _class(model: Model, model_type: str) -> type[PreTrainedModel]:
    import transformers

    stock = _stock_class(model.architecture)
    if model_type == model.family.model_type:
        return stock
    found: type[PreTrainedModel] = getattr(transformers, _class_name(model.family, model_type, stock.__name__))
    return found


def _class_name(family: Family, alias: str, name: str) -> str:
    """The alias's class of the same kind: LlamaForCausalLM -> MistralForCausalLM."""
    prefix = CONFIG_MAPPING[family.model_type].__name__.removesuffix("Config")
    return CONFIG_MAPPING[alias].__name__.removesuffix("Config") + name.removeprefix(prefix)
