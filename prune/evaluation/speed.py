"""Latency of one forward pass, of several models in one alternated run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

LEAST, MOST = 5, 200  # rounds


def forward_latency(
    models: Mapping[str, PreTrainedModel],
    *,
    batch: int = 1,
    length: int = 256,
    seconds: float = 4.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Median seconds of a forward pass over (batch, length) random token ids, without cache.

    Rounds of all models in turn, for about `seconds` after a warm-up, so that whatever else the machine does falls on
    all of them. Gives `latency_seconds` (a median per model), `latency_spread` (quartiles per model), `latency_ratio`
    (the median over rounds of last over first), and what was run.
    """
    ids = torch.randint(_vocabulary(models), (batch, length), generator=torch.Generator().manual_seed(seed))
    inputs = {name: ids.to(model.device) for name, model in models.items()}
    taken: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for name, model in models.items():  # warm-up
            _forward(model, inputs[name])
        start, rounds = time.perf_counter(), 0
        while rounds < LEAST or (rounds < MOST and time.perf_counter() - start < seconds):
            for name, model in models.items():
                taken[name].append(_forward(model, inputs[name]))
            rounds += 1
    first, *_, last = [*models, *models]
    ratios = [after / before for before, after in zip(taken[first], taken[last], strict=True)]
    return {
        "latency_seconds": {name: statistics.median(own) for name, own in taken.items()},
        "latency_spread": {name: _quartiles(own) for name, own in taken.items()},
        "latency_ratio": statistics.median(ratios),
        "latency_of": {
            "batch": batch,
            "length": length,
            "rounds": rounds,
            "device": str(next(iter(models.values())).device),
        },
    }


def _vocabulary(models: Mapping[str, PreTrainedModel]) -> int:
    return min(model.config.get_text_config().vocab_size for model in models.values())


def _forward(model: PreTrainedModel, ids: torch.Tensor) -> float:
    """Seconds of one pass, waited for to its end on a GPU."""
    _settle(model)
    start = time.perf_counter()
    model(input_ids=ids, use_cache=False)
    _settle(model)
    return time.perf_counter() - start


def _settle(model: PreTrainedModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def _quartiles(values: list[float]) -> list[float]:
    low, _, high = statistics.quantiles(values, n=4)
    return [low, high]
