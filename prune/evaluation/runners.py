"""How a model is run to be timed: what it first does with a prompt, and each further token; PyTorch or ONNX Runtime."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prune.model.caching import cache_argument, cache_of, takes_cache
from prune.model.graph import completed, open_graph, outputs, run_graph

PYTORCH, ONNX = "PyTorch", "ONNX Runtime"


@dataclass(frozen=True)
class Runner:
    """`prefill(ids)` takes (batch, length) token ids and gives a state; `decode(state, ids)` takes (batch, 1) and gives
    the next. A model without a cache has no `decode`. `settle` waits for the device. `limit` and `vocabulary` bound the
    ids; a model of images takes ids for their number alone."""

    runtime: str
    prefill: Callable[[Tensor], Any]
    decode: Callable[[Any, Tensor], Any] | None
    settle: Callable[[], None]
    limit: int
    vocabulary: int
    device: torch.device


def pytorch(module: PreTrainedModel, *, seed: int = 0) -> Runner:
    """A module in eval mode. With a cache, the logits of the last token alone are computed, as `generate` does."""
    text = module.config.get_text_config()
    caches = takes_cache(module) and not module.config.is_encoder_decoder
    last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(module.forward).parameters else {}

    def prefill(ids: Tensor) -> Any:
        if not caches:
            return module(**_whole(module, ids, seed))
        return cache_of(module(input_ids=ids, use_cache=True, **last))

    def decode(cache: Any, ids: Tensor) -> Any:
        return cache_of(module(input_ids=ids, use_cache=True, **{cache_argument(module): cache}, **last))

    def settle() -> None:
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)

    return Runner(
        PYTORCH,
        prefill,
        decode if caches else None,
        settle,
        device=module.device,
        **bounds(text),
    )


def bounds(config: Any) -> dict[str, int]:
    """`limit` and `vocabulary` as a config states them."""
    positions_ = getattr(config, "max_position_embeddings", None)
    limit = max(positions_ - 2, 1) if positions_ else sys.maxsize  # RoBERTa counts its positions from two
    return {"limit": limit, "vocabulary": getattr(config, "vocab_size", 0)}


def _whole(module: PreTrainedModel, ids: Tensor, seed: int) -> dict[str, Any]:
    """What one whole forward pass takes: an encoder's ids, those of both sides, or images."""
    config: Any = module.config
    if module.main_input_name == "pixel_values":
        generator = torch.Generator().manual_seed(seed)
        size = (len(ids), config.num_channels, config.image_size, config.image_size)
        return {"pixel_values": torch.randn(size, generator=generator).to(module.device, module.dtype)}
    both = {"decoder_input_ids": ids} if config.is_encoder_decoder else {}
    return {"input_ids": ids, **both, **({"use_cache": False} if hasattr(config, "use_cache") else {})}


def onnx(path: Path, *, limit: int = sys.maxsize, vocabulary: int = 0, seed: int = 0) -> Runner:
    """An exported graph on the CPU, with its cache where it has one. It gives the logits of every token it is given."""
    session = open_graph(path)
    inputs = {value.name: value for value in session.get_inputs()}
    caches = any(name.startswith("past_key_values") for name in inputs)

    def prefill(ids: Tensor) -> Any:
        if not caches:
            return outputs(session, _inputs(inputs, ids, seed))
        return run_graph(session, ids, torch.ones_like(ids))[1], ids.shape[1]

    def decode(state: Any, ids: Tensor) -> Any:
        past, length = state
        mask = torch.ones(len(ids), length + 1, dtype=torch.long)
        return run_graph(session, ids, mask, past)[1], length + 1

    return Runner(
        runtime_of(path),
        prefill,
        decode if caches else None,
        lambda: None,
        limit,
        vocabulary,
        torch.device("cpu"),
    )


def _inputs(known: Mapping[str, Any], ids: Tensor, seed: int) -> dict[str, Tensor]:
    """What a graph without a cache takes: token ids with all that goes with them, or images."""
    if "pixel_values" in known:
        size = [len(ids), *known["pixel_values"].shape[1:]]
        return {"pixel_values": torch.randn(size, generator=torch.Generator().manual_seed(seed))}
    return completed({"input_ids": ids})


def runtime_of(path: Path) -> str:
    """What runs an exported graph, with the type of its weights where its folder states one: `onnx-int8`."""
    _, _, kind = path.parent.name.partition("onnx-")
    return f"{ONNX} {kind.replace('-', ' ')}".strip()
