"""What a step will need of memory, disk and time, estimated from shapes before it runs."""

from __future__ import annotations

from math import prod

from prune.measure import flops_per_second, layer_flops
from prune.model.model import Model

FLOOR = 450 * 10**6  # bytes that Python, torch and transformers take before any weight
EFFICIENCY = 0.5  # of a plain matrix product, in a forward pass


def walking(model: Model, *, tokens: int, length: int, device: str, walks: int = 1) -> dict[str, float]:
    """Walks over `tokens` tokens: a layer and its cut in float32, the embedding, and two sets of hidden states."""
    layers = range(model.numbers["layers"])
    widest = max(sum(prod(model.tensors.info[name].shape) for name in model.names(layer)) for layer in layers)
    largest = max(prod(info.shape) for info in model.tensors.info.values())
    hidden = 2 * tokens * model.numbers["width"]
    flops = walks * tokens * sum(sum(layer_flops(model, layer, length)) for layer in layers)
    return _needs(4 * (max(2 * widest, largest) + hidden), 0, flops, device)


def writing(model: Model) -> dict[str, float]:
    """A checkpoint on disk."""
    return {"memory": float(FLOOR + 2 * model.tensors.largest()), "disk": float(model.tensors.bytes), "seconds": 0.0}


def streaming(model: Model) -> dict[str, float]:
    """Tensors rewritten one by one: the largest as stored, in float32, and as it is written, in float32 at most."""
    largest = max((prod(info.shape) for info in model.tensors.info.values()), default=0)
    return {"memory": float(FLOOR + 12 * largest), "disk": 4.0 * model.tensors.parameters, "seconds": 0.0}


def whole(model: Model, *, copies: int, tokens: int, device: str, disk: float = 0.0) -> dict[str, float]:
    """The whole model in float32, in `copies`, run over `tokens` tokens."""
    parameters = model.tensors.parameters
    return _needs(4 * copies * parameters, disk, 2 * parameters * tokens, device)


def training(student: Model, teacher: Model | None, *, tokens: int, windows: int, device: str) -> dict[str, float]:
    """Training over `tokens` tokens, `windows` of them at once: weights, gradients, two moments, the best weights."""
    own, other = student.tensors.parameters, teacher.tensors.parameters if teacher else 0
    activations = 16 * student.numbers["layers"] * student.numbers["width"] * windows
    flops = (6 * own + 2 * other) * tokens
    return _needs(4 * (5 * own + other + activations), student.tensors.bytes, flops, device)


def together(*needs: dict[str, float]) -> dict[str, float]:
    """Parts one after the other: the largest memory, disk and time added up."""
    return {
        "memory": max(need["memory"] for need in needs),
        "disk": sum(need["disk"] for need in needs),
        "seconds": sum(need["seconds"] for need in needs),
    }


def _needs(memory: float, disk: float, flops: float, device: str) -> dict[str, float]:
    return {"memory": FLOOR + memory, "disk": disk, "seconds": flops / (flops_per_second(device) * EFFICIENCY)}
