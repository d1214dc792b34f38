"""The config that states a cut model's shapes: stock where stock transformers accepts it, by layer where not."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from prune.errors import PruneError
from prune.model import nonuniform
from prune.model.family import PREFIX, Family
from prune.model.model import Model


def accepts(model: Model, **numbers: int) -> bool:
    """Whether some stock config carries these numbers (heads, kv_heads, channels ...) in every layer."""
    if any(value != model.numbers[number] for number, value in numbers.items() if number in model.family.fixed):
        return False
    return _stock(model.family, _with(model, numbers)) is not None


def stacks(model: Model) -> list[range]:
    """The layers of each list of layers: of the encoder, where there is one, and of the decoder."""
    encoder, count = model.numbers.get("encoder_layers", 0), model.numbers["layers"]
    return [stack for stack in (range(encoder), range(encoder, count)) if stack]


def renumbered(model: Model, layers: Sequence[int]) -> dict[int, str]:
    """Kept layer -> the path it has once the others are gone."""
    return dict(zip(layers, paths(model, layers), strict=True))


def paths(model: Model, layers: Sequence[int]) -> list[str]:
    """The path that each of these layers, in this order and perhaps named twice, has in a model made of them."""
    encoder = model.numbers.get("encoder_layers", 0)
    new = {True: count(), False: count()}
    return [
        f"{model.family.encoder}.{next(new[True])}" if layer < encoder else model.family.layer(next(new[False]))
        for layer in layers
    ]


def shaped(
    model: Model, layers: Sequence[int], sizes: Sequence[Mapping[str, int]], width: int | None = None
) -> tuple[PreTrainedConfig, type[PreTrainedModel]]:
    """The config and class for what is left: the kept layers (old indices) with the sizes of each, and the width.

    In order of preference: the family's own stock type, its alias (the same computation under another stock type), or
    the family's non-uniform type.
    """
    assert len(layers) == len(sizes) >= 1, (layers, sizes)
    width = model.numbers["width"] if width is None else width
    values = {**_depth(model, layers, sizes), model.family.sizes["width"]: width}
    common = _common(model, sizes)
    if common is not None and accepts(model, **common, width=width):
        uniform = {**values, **{model.family.sizes[number]: value for number, value in common.items()}}
        found = _stock(model.family, uniform)
        if found is not None:
            return found, _class(model, found.model_type)
    return _differing(model, values, sizes)


def _depth(model: Model, layers: Sequence[int], sizes: Sequence[Mapping[str, int]]) -> dict[str, Any]:
    """The config's values with everything that is stated layer by layer kept for these layers."""
    family = model.family
    if any(not set(stack) & set(layers) for stack in stacks(model)):
        raise PruneError("an encoder and a decoder must each keep a layer", where="layers")
    encoder = sum(1 for layer in layers if layer < model.numbers.get("encoder_layers", 0))
    if family.encoder and len(layers) > 2 * encoder:
        why = "transformers counts a decoder's cache by the encoder's layers"
        raise PruneError(f"a decoder may not keep more layers than its encoder: {why}", where="layers")
    values = _with(model, {"layers": len(layers) - encoder, "encoder_layers": encoder})
    for key in family.per_layer_lists:
        if isinstance(values.get(key), list):
            values[key] = [values[key][i] for i in layers]
    if list(layers) != list(range(model.numbers["layers"])):
        for key in family.first_layers:
            if isinstance(values.get(key), int):
                values[key] = sum(1 for layer in layers if layer < values[key])
    if family.dense_layers:
        values[family.dense_layers] = [new for new, own in enumerate(sizes) if not own["experts"]]
    return {**values, **family.settings}


def _common(model: Model, sizes: Sequence[Mapping[str, int]]) -> dict[str, int] | None:
    """The numbers that all layers share, or None. A layer without experts has channels instead, and the reverse."""
    found: dict[str, int] = {}
    if any(not own["attention"] or not own["mlp"] for own in sizes):
        return None
    for own in sizes:
        lacks = set()
        if "experts" in model.family.sizes:
            lacks = {"channels"} if own["experts"] else {"experts", "expert_channels"}
        for number in set(model.family.structural) - lacks:
            if found.setdefault(number, own[number]) != own[number]:
                return None
    return None if 0 in found.values() else found


def _differing(
    model: Model, values: dict[str, Any], sizes: Sequence[Mapping[str, int]]
) -> tuple[PreTrainedConfig, type[PreTrainedModel]]:
    """The config and class of the family's form whose layers differ."""
    family = model.family
    if not family.differing:
        raise PruneError(
            f"{family.model_type} has no form whose layers differ; remove as much from every layer (scope: layer)"
        )
    values["model_type"] = PREFIX + family.model_type
    values["allow_global_per_layer_attribute_access"] = True
    values["per_layer_config"] = {i: nonuniform.overrides(family, own) for i, own in enumerate(sizes)}
    for number in family.structural:  # stated of all layers too, where one has none of its own (BLOOM's channels)
        if not all(family.sizes[number] in own for own in values["per_layer_config"].values()):
            values.setdefault(family.sizes[number], model.numbers[number])
    architecture = nonuniform.model_class(family.model_type, _stock_class(model.architecture))
    values["architectures"] = [architecture.__name__]
    return nonuniform.config_class(family.model_type).from_dict(values), architecture


def _with(model: Model, numbers: Mapping[str, int]) -> dict[str, Any]:
    """The model's config as a plain mapping of its stock type, with `numbers` changed and head_dim stated."""
    values = copy.deepcopy(model.config.to_dict())
    for key in ("per_layer_config", "allow_global_per_layer_attribute_access"):
        values.pop(key, None)
    values["model_type"] = model.family.model_type
    values["architectures"] = [_stock_class(model.architecture).__name__]
    stated = model.family.sizes
    if "head_dim" in stated:  # without it, loaders divide the width by the number of heads and get it wrong
        values[stated["head_dim"]] = model.numbers["head_dim"]
    values.update({stated[number]: value for number, value in numbers.items() if number in stated})
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


def renamed(
    architecture: type[PreTrainedModel], model_type: str, other: str
) -> tuple[type[PreTrainedConfig], type[PreTrainedModel]]:
    """The config class of another stock type, and its class of the same kind as `architecture`."""
    import transformers

    ours, theirs = CONFIG_MAPPING[model_type], CONFIG_MAPPING[other]
    suffix = architecture.__name__.removeprefix(ours.__name__.removesuffix("Config"))
    found: type[PreTrainedModel] = getattr(transformers, theirs.__name__.removesuffix("Config") + suffix)
    return theirs, found
