"""A model here, as a writer: prompts in batches, through its chat template where it has one."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence, Set
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from prune.errors import PruneError
from prune.instructions import render
from prune.model.model import Model
from prune.model.save import load
from prune.synthesis.writers.writer import Replies, Reply, Request, Writer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def local(
    model: Model,
    *,
    name: str,
    batch_size: int = 8,
    top_p: float = 0.95,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    module: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Writer:
    """A writer that generates with an opened model, loaded when it is first asked, or with `module`, loaded before.

    In float32 on a CPU unless told otherwise, and in the weights' own type on a GPU.

    Requests are cut into batches by their places alone, and each batch draws from a seed of its own: what is written
    does not depend on what was answered before. PruneError where the model cannot generate or has no tokenizer.
    """
    refuse(model)
    reader = prepared(tokenizer or model.tokenizer(), model.source)
    kind = torch.float32 if dtype is None and device == "cpu" else dtype
    loaded = cache(lambda: (module or load(model, device=device, dtype=kind)).eval())

    def answer(requests: Sequence[Request], wanted: Set[int]) -> Replies:
        for start in range(0, len(requests), batch_size):
            places = range(start, min(start + batch_size, len(requests)))
            if wanted.isdisjoint(places):
                continue
            replies = generate(loaded(), reader, requests[start : start + batch_size], top_p=top_p)
            yield from ((place, reply) for place, reply in zip(places, replies, strict=True) if place in wanted)

    identity = ["local", _fingerprint(model), batch_size, top_p, device, str(kind)]
    return Writer(name, identity, answer)


def refuse(model: Model) -> None:
    """PruneError when a model does not write text, known from its config."""
    if "CausalLM" not in model.architecture.__name__:
        raise PruneError(f"a {model.architecture.__name__} does not write text", where="writer")


def prepared(given: PreTrainedTokenizerBase, source: str) -> PreTrainedTokenizerBase:
    """A copy of a tokenizer, set to fill batches on the left."""
    tokenizer = copy.copy(given)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise PruneError("the tokenizer has neither a padding nor an end token", where=source)
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@torch.inference_mode()
def generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, requests: Sequence[Request], *, top_p: float
) -> list[Reply]:
    """Replies to one batch. A prompt that leaves the model no room is answered with nothing."""
    most, temperature = requests[0].tokens, requests[0].temperature
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    inputs = tokenizer(
        [render([{"role": "user", "content": each.prompt}], tokenizer, ask=True) for each in requests],
        return_tensors="pt",
        padding=True,
        add_special_tokens=tokenizer.chat_template is None,  # a template writes them itself
        return_token_type_ids=False,
    ).to(model.device)
    lengths = inputs["attention_mask"].sum(dim=1).tolist()
    fits = [not positions or length + most <= positions for length in lengths]
    if not any(fits):
        return [Reply("", length, 0, truncated=True) for length in lengths]
    width = max(length for length, fit in zip(lengths, fits, strict=True) if fit)
    trimmed = {key: value[:, -width:] for key, value in inputs.items()}  # those that do not fit are not shown
    drawing: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(_seed(requests))
        output = model.generate(  # type: ignore[operator]
            **trimmed,
            max_new_tokens=most,
            pad_token_id=tokenizer.pad_token_id,
            **(drawing if temperature > 0 else {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}),
        )
    said = output[:, width:].tolist()
    ends = _ends(model, tokenizer)
    return [
        _reply(tokenizer, ids, length, ends) if fit else Reply("", length, 0, truncated=True)
        for ids, length, fit in zip(said, lengths, fits, strict=True)
    ]


def _reply(tokenizer: PreTrainedTokenizerBase, ids: list[int], prompt_tokens: int, ends: set[int]) -> Reply:
    end = next((place for place, token in enumerate(ids) if token in ends), None)
    said = ids if end is None else ids[:end]
    text = str(tokenizer.decode(said, skip_special_tokens=True)).strip()
    return Reply(text, prompt_tokens, len(said), truncated=end is None)


def _ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    stated = getattr(model.generation_config, "eos_token_id", None)
    found = stated if isinstance(stated, list) else [stated]
    return {token for token in [*found, tokenizer.eos_token_id] if token is not None}


def _seed(requests: Sequence[Request]) -> int:
    text = ",".join(str(request.seed) for request in requests)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def _fingerprint(model: Model) -> str:
    return hashlib.sha256(repr(sorted(model.fingerprint().items())).encode()).hexdigest()
