"""Bias slots: where a stock config can carry biases at its output linears, opened with zeros, to be solved."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from prune.model import config as configs
from prune.model.family import PREFIX
from prune.model.model import Model
from prune.model.overlay import extended
from prune.model.skeleton import skeleton, tied

BOTH: Mapping[str, Any] = {"attention_bias": True, "mlp_bias": True}
ATTENTION: Mapping[str, Any] = {"attention_bias": True}
# model_type -> the config values that switch biases on
SLOTS: Mapping[str, Mapping[str, Any]] = {
    "llama": BOTH,
    "granite": BOTH,
    "smollm3": BOTH,
    "qwen3": ATTENTION,
    "gemma": ATTENTION,
    "gemma2": ATTENTION,
    "gemma3_text": ATTENTION,
    "olmo2": ATTENTION,
    "seed_oss": {"attention_out_bias": True, "mlp_bias": True},
}
# A Llama whose head counts its own config refuses is saved as Mistral, which has no slots; SeedOss is the same sum too.
SAME_WITH_SLOTS = {("llama", "mistral"): ("seed_oss", {"attention_bias": False})}


def opened(model: Model) -> Model:
    """The same computation with every bias that its stock config can carry, zero where there was none.

    The model itself where its config has no slots or they are open already.
    """
    found = _with_slots(model)
    if found is None:
        return model
    root = skeleton(found)
    ties = tied(root)
    dtype = next(info.dtype for info in model.tensors.info.values() if info.dtype.is_floating_point)
    new = {
        name: torch.zeros(tensor.shape, dtype=dtype)
        for name, tensor in root.state_dict().items()
        if name not in model.tensors.info and name not in ties
    }
    assert all(name.endswith(".bias") for name in new), list(new)
    return replace(found, tensors=extended(model.tensors, new)) if new else model


def _with_slots(model: Model) -> Model | None:
    """The model under a config with its slots open, or None where there are none to open."""
    own = model.config.model_type
    stock = own.removeprefix(PREFIX)
    values = copy.deepcopy(model.config.to_dict())
    kind, architecture = type(model.config), model.architecture
    if (model.family.model_type, own) in SAME_WITH_SLOTS:
        stock, settings = SAME_WITH_SLOTS[model.family.model_type, own]
        kind, architecture = configs.renamed(architecture, own, stock)
        values.update(settings, model_type=stock, architectures=[architecture.__name__])
    if stock not in SLOTS:
        return None
    values.update(SLOTS[stock])
    return replace(model, config=kind.from_dict(values), architecture=architecture)
