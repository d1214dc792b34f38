"""Adapters put onto a model: W + scale x B A, computed when the tensor is read. LoRA: https://arxiv.org/abs/2106.09685"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Any

from torch import Tensor

from prune import files
from prune.errors import PruneError
from prune.model.checkpoint import Entry, read_entry, read_header
from prune.model.model import Model
from prune.model.tensors import Tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."


def with_adapter(model: Model, folder: Path) -> Model:
    """The model with a LoRA adapter's changes added, as a lazy view. Raises PruneError for what is not plain LoRA."""
    where = str(folder)
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise PruneError(f"is not an adapter: {CONFIG} and {WEIGHTS} must be there", where=where)
    config = files.read_json(folder / CONFIG)
    _refuse(config, where)
    entries = read_header(folder / WEIGHTS)
    pairs, replaced = _sorted(entries, model, where)
    for name, (down, up) in pairs.items():
        shape = model.tensors.info[name].shape
        own = (entries[up].info.shape[0], entries[down].info.shape[1])
        if own != (shape[::-1] if config.get("fan_in_fan_out") else shape):
            raise PruneError(
                f"the adapter's change of {name!r} is of shape {list(own)}, not {list(shape)}", where=where
            )

    def read(name: str) -> Tensor:
        if name in replaced:
            return read_entry(replaced[name], entries[replaced[name]]).to(model.tensors.info[name].dtype)
        tensor = model.tensors.read(name)
        if name not in pairs:
            return tensor
        down, up = (read_entry(key, entries[key]).float() for key in pairs[name])
        change = up @ down * _scale(config, name)
        return (tensor.float() + (change.T if config.get("fan_in_fan_out") else change)).to(tensor.dtype)

    return replace(model, tensors=Tensors(model.tensors.info, read), weights=())


def _refuse(config: Mapping[str, Any], where: str) -> None:
    odd = [key for key in ("use_dora", "use_bdlora", "lora_bias", "alora_invocation_tokens") if config.get(key)]
    if config.get("peft_type") != "LORA" or odd or config.get("bias", "none") != "none":
        kind = config.get("peft_type")
        raise PruneError(f"only plain LoRA adapters are read, not {', '.join(odd) or kind}", where=where)


def _sorted(
    entries: Mapping[str, Entry], model: Model, where: str
) -> tuple[dict[str, tuple[str, str]], dict[str, str]]:
    """Model tensor -> the adapter's (A, B) for it, and model tensor -> the adapter's own version of it."""
    pairs: dict[str, tuple[str, str]] = {}
    replaced = {}
    for key in entries:
        plain = key.removeprefix(PREFIX)
        found = re.fullmatch(r"(.+)\.lora_(A|B)(?:\.default)?\.weight", plain)
        name = (
            f"{found[1]}.weight" if found else plain.replace(".modules_to_save.default", "").replace(".base_layer", "")
        )
        if name not in model.tensors.info:
            raise PruneError(f"the adapter changes {name!r}, which the model has not", where=where)
        if not found:
            replaced[name] = key
        elif found[2] == "A":
            other = key.replace(".lora_A", ".lora_B")
            if other not in entries:
                raise PruneError(f"the adapter has {key!r} and not {other!r}", where=where)
            pairs[name] = (key, other)
    return pairs, replaced


def _scale(config: Mapping[str, Any], name: str) -> float:
    """alpha / r, or alpha / sqrt(r) where the adapter says so; both may differ by module."""
    module = name.removesuffix(".weight")
    rank = _own(config.get("rank_pattern"), module, config["r"])
    alpha = _own(config.get("alpha_pattern"), module, config["lora_alpha"])
    return float(alpha) / (sqrt(rank) if config.get("use_rslora") else rank)


def _own(patterns: Mapping[str, Any] | None, module: str, value: Any) -> Any:
    for pattern, own in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return own
    return value
