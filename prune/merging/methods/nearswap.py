"""NearSwap: towards the other model where it is near the base.

Source: https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001
"""

from __future__ import annotations

from torch import Tensor

from prune.merging.block import Block

BASE = "needed"
LEAST, MOST = 1, 1


def merge(block: Block, facts: None, *, t: float) -> Tensor:  # noqa: ARG001
    """w x other + (1 - w) x base, w = t / |other - base|, at most 1."""
    assert block.base is not None
    weight = (t / (block.base - block.tensors[0]).abs().clamp(min=1e-6)).clamp(0, 1)
    return weight * block.tensors[0] + (1 - weight) * block.base
