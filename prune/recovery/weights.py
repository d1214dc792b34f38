"""What is trained: all weights, low-rank additions to the linears (merged before saving), or norms and biases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from prune.errors import PruneError, unknown
from prune.model.model import Model
from prune.model.skeleton import skeleton


@dataclass(frozen=True)
class Lora:
    """Low-rank additions (https://arxiv.org/abs/2106.09685): alpha / rank * B A beside each target linear.

    `targets` are the last names of linears ("q_proj"); None takes every linear in the layers.
    """

    rank: int = 16
    alpha: int = 32
    targets: tuple[str, ...] | None = None


Weights = Literal["all", "norms"] | Lora


def linears(model: Model) -> list[str]:
    """The last names of the linears in a model's layers, from its config alone."""
    root = skeleton(model)
    inside = f"{model.family.layers}."
    found = {
        path.rpartition(".")[2]
        for path, module in root.named_modules()
        if path.startswith(inside) and isinstance(module, (nn.Linear, Conv1D))
    }
    return sorted(found)


def check(model: Model, weights: Weights) -> None:
    """PruneError for LoRA targets that match nothing."""
    if isinstance(weights, Lora):
        known = linears(model)
        if not known:
            raise PruneError("no linear in the layers can take low-rank additions", where="weights")
        for target in weights.targets or ():
            if target not in known:
                raise unknown("LoRA target", target, known).at("weights")


def select(module: PreTrainedModel, model: Model, weights: Weights, seed: int) -> None:
    """Marks what is trained, in place; low-rank additions are put in, and begin as nothing."""
    if isinstance(weights, Lora):
        _add(module, weights, list(weights.targets or linears(model)), seed)
        return
    for parameter in module.parameters():
        parameter.requires_grad_(weights == "all" or parameter.ndim == 1)


def _add(module: PreTrainedModel, lora: Lora, targets: list[str], seed: int) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    turned = any(isinstance(found, Conv1D) for found in module.modules())  # GPT-2 keeps its matrices transposed
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, fan_in_fan_out=turned)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, module)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("lora_" in name)


def merge(module: PreTrainedModel) -> None:
    """Adds low-rank additions to their linears and takes them out, in place; nothing where there are none."""
    if not any("lora_" in name for name, _ in module.named_parameters()):
        return  # peft is slow to import
    from peft.tuners.tuners_utils import BaseTunerLayer

    for path, layer in list(module.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge(safe_merge=True)
            parent, _, name = path.rpartition(".")
            setattr(module.get_submodule(parent), name, layer.get_base_layer())
