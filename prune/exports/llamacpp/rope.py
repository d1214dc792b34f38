"""Rotary positions as llama.cpp takes them: a base, a factor for each frequency, and how far they hold."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prune.errors import PruneError
from prune.exports.llamacpp.architectures import Architecture


@dataclass(frozen=True)
class Rope:
    """`factors` (head_dim / 2,) divide the frequencies of the base; `linear` divides all positions instead."""

    base: float
    factors: Tensor | None = None
    linear: float | None = None
    scale: float = 1.0  # of sine and cosine, so that scores are scaled by its square
    context: int = 0  # tokens for which this holds; 0 for any number


def rope(config: Any, architecture: Architecture, head_dim: int) -> Rope:
    """The rotary positions of a config. Raises PruneError for those that the architecture cannot state."""
    given = config.rope_parameters
    given = given.get("full_attention", given)
    kind, base = given["rope_type"], float(given["rope_theta"])
    if given.get("partial_rotary_factor", 1.0) != 1.0:
        raise PruneError("its rotary positions turn a head's whole width, not a part of it")
    if kind == "default":
        return Rope(base)
    if kind == "dynamic":  # as by default up to the length it was trained for
        return Rope(base, context=int(config.max_position_embeddings))
    if architecture.factors and kind in ("linear", "llama3", "longrope", "yarn"):
        return _scaled(config, kind, base, head_dim, given)
    if kind == "linear":
        return Rope(base, linear=float(given["factor"]))
    raise PruneError(f"it has no place for rotary positions of type {kind}")


def _scaled(config: Any, kind: str, base: float, head_dim: int, given: dict[str, Any]) -> Rope:
    """Frequencies that transformers scales, as factors. Those of longrope hold up to the original context."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    frequencies, scale = ROPE_INIT_FUNCTIONS[kind](copy.deepcopy(config), torch.device("cpu"))
    plain = 1.0 / base ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    context = int(given["original_max_position_embeddings"]) if kind == "longrope" else 0
    return Rope(base, plain / frequencies, scale=float(scale), context=context)
