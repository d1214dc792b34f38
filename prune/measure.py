"""What several rooms need and none owns: token losses, the work in a layer, the speed of a device."""

from __future__ import annotations

import time
from functools import cache
from math import prod

import torch
from torch import Tensor

from prune.errors import unknown
from prune.model.model import Model

DTYPES = ("auto", "float32", "bfloat16", "float16")


def compute_dtype(device: str | torch.device, dtype: str | torch.dtype | None) -> torch.dtype | None:
    """What is computed in, by a name of DTYPES or as torch has it; None for what the weights are stored in.

    "auto" is float32 on a CPU and None on a GPU. Raises PruneError for anything else.
    """
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        return dtype
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise unknown("dtype", name, DTYPES).at("dtype")
    if name == "auto":
        return torch.float32 if torch.device(device).type == "cpu" else None
    found: torch.dtype = getattr(torch, name)
    return found


def token_loss(logits: Tensor, labels: Tensor) -> tuple[float, int]:
    """Summed negative log-likelihood in nats, and how many tokens it was summed over.

    `logits` (batch, length, vocabulary) predict the next token of `labels` (batch, length); -100 is not counted.
    """
    targets = labels[:, 1:].to(logits.device)
    counted = targets != -100
    chosen = logits[:, :-1][counted].float()  # (tokens, vocabulary)
    loss = torch.nn.functional.cross_entropy(chosen, targets[counted], reduction="sum")
    return loss.item(), int(counted.sum())


def layer_flops(model: Model, layer: int, length: int) -> tuple[int, int]:
    """FLOPs per token of a layer's matrices, and of its attention products at a context of `length` tokens."""
    sizes = model.sizes(layer)
    matrices = sum(multiplied(model, name, sizes["experts"]) for name in model.names(layer))
    return 2 * matrices, 4 * length * sizes["heads"] * sizes["head_dim"]


def flops_per_token(model: Model, length: int = 1024) -> int:
    """FLOPs of one forward pass per token at a context of `length` tokens, a multiply-add as two, the head included.

    The attention products are counted in full; norms and activations are not.
    """
    layers = sum(sum(layer_flops(model, layer, length)) for layer in range(model.numbers["layers"]))
    return layers + 2 * getattr(model.config, "vocab_size", 0) * model.numbers["width"]


def multiplied(model: Model, name: str, experts: int) -> int:
    """How many of a tensor's numbers one token is multiplied with: of stacked experts, those that it goes to."""
    shape = model.tensors.info[name].shape
    if len(shape) < 2:
        return 0
    return prod(shape) * model.numbers["routed"] // experts if len(shape) > 2 and experts else prod(shape)


@cache
def flops_per_second(device: str, dtype: torch.dtype = torch.float32, width: int = 512) -> float:
    """What a device does of `width`-wide matrix products, tried for a few hundredths of a second."""
    a, b = (torch.ones(width, width, device=device, dtype=dtype) for _ in range(2))
    (a @ b).sum().item()
    start, rounds = time.perf_counter(), 0
    while time.perf_counter() - start < 0.03:
        (a @ b).sum().item()
        rounds += 1
    return 2 * width**3 * rounds / (time.perf_counter() - start)
