"""Optimisers by name, and how the learning rate rises and falls."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from prune.recovery.settings import Optimizer

MOMENTUM = 0.9  # of sgd


def optimizer(named: Iterable[tuple[str, nn.Parameter]], settings: Optimizer, rate: float) -> torch.optim.Optimizer:
    """Over those parameters that are trained; weight decay is for matrices."""
    trained = [parameter for _, parameter in named if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=MOMENTUM)
    if settings.name == "adafactor":
        return torch.optim.Adafactor(groups, lr=rate)
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))


def share(step: int, steps: int, settings: Optimizer) -> float:
    """The learning rate of a step, counted from 0, as a share of the highest."""
    warm = math.ceil(settings.warmup * steps)
    if step < warm:
        return (step + 1) / (warm + 1)
    done = (step - warm) / max(steps - warm, 1)
    return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[settings.schedule]


def set_rate(of: torch.optim.Optimizer, rate: float) -> None:
    for group in of.param_groups:
        group["lr"] = rate


def clip(parameters: list[nn.Parameter], most: float) -> Tensor:
    """Scales gradients down to a norm of at most `most` (0: leaves them); gives the norm they had."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, most or math.inf)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
