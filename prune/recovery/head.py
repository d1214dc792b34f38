"""A causal model in two halves: the hidden state that leaves its last layer, and the head that makes logits of it.

So that logits of vocabulary size stand in memory for a few tokens at a time only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prune.errors import PruneError
from prune.model.family import PREFIX
from prune.model.model import Model

CAPPED = ("gemma2", "gemma3_text")  # families whose heads cap their logits
CAUSAL = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True)
class Head:
    """logits = cap * tanh(scale * (hidden @ weight.T + bias) / cap); weight (vocabulary, width), bias or None."""

    weight: Tensor
    bias: Tensor | None
    scale: float
    cap: float | None

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 (tokens, vocabulary), or float64 of a head in float64; computed in the head's own dtype."""
        raw = hidden @ self.weight.T
        raw = raw.float() if raw.dtype.itemsize < 4 else raw
        if self.bias is not None:
            raw += self.bias
        if self.scale != 1:
            raw *= self.scale
        return raw if self.cap is None else raw.div_(self.cap).tanh_().mul_(self.cap)

    def into_raw(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """The gradient with respect to hidden @ weight.T + bias; changes `gradient` in place."""
        if self.cap is not None:
            gradient *= 1 - (logits / self.cap).square()
        return gradient if self.scale == 1 else gradient.mul_(self.scale)


def head(module: PreTrainedModel) -> Head:
    """The head of a causal model, as its own forward applies it."""
    output = module.get_output_embeddings()
    config = module.config.get_text_config()
    divisor = getattr(config, "logits_scaling", None) or 1.0  # granite
    capped = config.model_type.removeprefix(PREFIX) in CAPPED
    cap = config.final_logit_softcapping if capped else None
    return Head(output.weight, getattr(output, "bias", None), 1.0 / divisor, cap)


def check(module: PreTrainedModel) -> None:
    """PruneError unless the two halves make the logits that the whole makes, tried on a few tokens."""
    ids = torch.arange(4, device=module.device)[None]
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        whole = module(**batch, use_cache=False).logits.float()
        halves = head(module).logits(last_hidden(module, batch))
    if not (whole - halves).abs().max() <= 1e-2 * whole.abs().max():
        raise PruneError(
            "makes its logits with a head of its own; training knows linear heads, scaled or capped",
            where=type(module).__name__,
        )


def last_hidden(module: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """What the head is given, (batch, length, width)."""
    inputs: dict[str, Any] = {name: batch[name] for name in ("input_ids", "attention_mask")}
    found: Tensor = module.base_model(**inputs, use_cache=False).last_hidden_state
    return found


def predicted(hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The hidden states that predict a counted label, and those labels: (tokens, width) and (tokens,).

    The state at a position predicts the label of the next one; -100 is not counted.
    """
    following = labels[:, 1:]
    counted = following != -100
    states = hidden[:, :-1]
    if bool(counted.all()):
        return states.reshape(-1, hidden.shape[-1]), following.reshape(-1)
    return states[counted], following[counted]


def counted(labels: Tensor) -> int:
    """How many labels are predicted."""
    return int((labels[:, 1:] != -100).sum())


def refuse_others(model: Model) -> None:
    """PruneError for what is not a causal language model."""
    if not model.architecture.__name__.endswith(CAUSAL):
        raise PruneError(
            f"training is for causal language models, not {model.architecture.__name__}", where=model.source
        )
