"""Passthrough: one model's tensors as they are, or scaled; for slices stacked upon each other."""

from __future__ import annotations

from torch import Tensor

from prune.merging.block import Block, Each

BASE = "input"
LEAST, MOST = 1, 1


def merge(block: Block, facts: None, *, scale: Each = (1.0,)) -> Tensor:  # noqa: ARG001
    """scale x"""
    return block.tensors[0] if scale[0] == 1 else block.tensors[0] * scale[0]
