"""Latency of one forward pass, of several models in one alternated run."""

from __future__ import annotations

import statistics
import sys
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
    """Median seconds of a forward pass over (batch, length) random token ids, or `batch` random images, without cache.

    Rounds of all models in turn, for about `seconds` after a warm-up, so that whatever else the machine does falls on
    all of them. The length is cut to what every model has positions for. Gives `latency_seconds` (a median per model),
    `latency_spread` (quartiles per model), `latency_ratio` (the median over rounds of last over first), and what was
    run. The models are to be in eval mode.
    """
    texts = [model.config.get_text_config() for model in models.values()]
    length = min(length, *map(_longest, texts))
    vocabulary = min((text.vocab_size for text in texts if hasattr(text, "vocab_size")), default=0)
    inputs = {name: _inputs(model, batch, length, vocabulary, seed) for name, model in models.items()}
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


def _longest(config: Any) -> int:
    bound: int | None = getattr(config, "max_position_embeddings", None)
    return max(bound - 2, 1) if bound else sys.maxsize  # RoBERTa counts its positions from two


def _inputs(model: PreTrainedModel, batch: int, length: int, vocabulary: int, seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    config: Any = model.config
    if model.main_input_name == "pixel_values":
        size = (batch, config.num_channels, config.image_size, config.image_size)
        return {"pixel_values": torch.randn(size, generator=generator).to(model.device, model.dtype)}
    ids = torch.randint(vocabulary, (batch, length), generator=generator).to(model.device)
    both = {"decoder_input_ids": ids} if config.is_encoder_decoder else {}
    caching = {"use_cache": False} if hasattr(config, "use_cache") else {}
    return {"input_ids": ids, **both, **caching}


def _forward(model: PreTrainedModel, inputs: Mapping[str, Any]) -> float:
    """Seconds of one pass, waited for to its end on a GPU."""
    _settle(model)
    start = time.perf_counter()
    model(**inputs)
    _settle(model)
    return time.perf_counter() - start


def _settle(model: PreTrainedModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def _quartiles(values: list[float]) -> list[float]:
    low, _, high = statistics.quantiles(values, n=4)
    return [low, high]
