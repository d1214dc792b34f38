"""Configs that others wrote: read as data, scrubbed of everything that names code, refused when nothing here fits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from prune.errors import PruneError
from prune.model import family as families
from prune.model import nonuniform
from prune.model.companions import CODE_KEYS
from prune.model.family import PREFIX

# What config classes raise for values they do not take.
_REFUSALS = (
    StrictDataclassError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
MAX_CONFIG = 4 * 1024**2  # bytes


def read_config(folder: Path) -> PreTrainedConfig:
    """A folder's config, scrubbed of everything that names code. Raises PruneError for an unknown family."""
    path = folder / "config.json"
    if not path.is_file():
        raise PruneError("no config.json in the model folder", where=str(folder))
    if path.stat().st_size > MAX_CONFIG:
        raise PruneError("the config is larger than 4 MB", where=str(path))
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise PruneError(f"not readable as JSON: {error}", where=str(path)) from error
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise PruneError("the config has no model_type", where=str(path))
    if "quantization_config" in values:
        raise PruneError("a quantised checkpoint cannot be pruned; take the full-precision one", where=str(path))
    try:
        family = families.of(values["model_type"])
    except PruneError as error:
        raise PruneError(error.message + _described(values), where=str(path)) from None
    ours = values["model_type"].startswith(PREFIX)
    kind = nonuniform.config_class(family.model_type) if ours else CONFIG_MAPPING[family.model_type]
    return _build(kind, scrub(values), str(path))


def _described(values: dict[str, Any]) -> str:
    """What an architecture without a family looks like, where Optimum knows how its config names things."""
    from optimum.utils import NormalizedConfigManager

    try:
        normalized = NormalizedConfigManager.get_normalized_config_class(values["model_type"])
        sizes = normalized(CONFIG_MAPPING[values["model_type"]].from_dict(scrub(values)))
        heads = sizes.num_attention_heads
        return f" (it has {sizes.num_layers} layers of width {sizes.hidden_size} with {heads} heads)"
    except _REFUSALS:  # unknown to Optimum or to transformers as well
        return ""


def _build(kind: type[PreTrainedConfig], values: dict[str, Any], where: str) -> PreTrainedConfig:
    try:
        return kind.from_dict(values)
    except _REFUSALS as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise PruneError(f"{kind.__name__} refuses this config: {reason}", where=where) from error


def scrub(values: Any) -> Any:
    """A foreign config without keys that are private or that make transformers fetch or run code, at any depth."""
    if isinstance(values, dict):
        kept = {key: value for key, value in values.items() if not key.startswith("_") and key not in CODE_KEYS}
        return {key: scrub(value) for key, value in kept.items()}
    return [scrub(value) for value in values] if isinstance(values, list) else values
