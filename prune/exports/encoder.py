"""A model that answers in one call, of tokens or of an image, as a function of plain tensors."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prune.model.tracing import Dims, Ports

BATCH, CHOICES, LENGTH = "batch_size", "num_choices", "sequence_length"
SIZES = {BATCH: (2, 3), CHOICES: (4, 5), LENGTH: (6, 7)}  # in the two calls that tell which output has which


def refusal(architecture: type[PreTrainedModel], config: Any) -> str | None:
    """Why it cannot be carried, or None."""
    if config.is_encoder_decoder:
        return (
            "onnx carries encoders and decoders, each as one graph, and "
            f"{architecture.__name__} is an encoder with a decoder"
        )
    if architecture.main_input_name not in ("input_ids", "pixel_values"):
        read = architecture.main_input_name
        return f"onnx carries models of text and of images, and {architecture.__name__} reads {read}"
    return None


def ports(model: PreTrainedModel) -> Ports:
    """The model under Optimum's names: input_ids, attention_mask and token_type_ids, or pixel_values, to logits."""
    inputs, given = shapes(model), answer_shapes(model)
    return Ports(_Flat(model), _sample(model, inputs, 0), list(given), {**inputs, **given})


def answer_shapes(model: PreTrainedModel) -> dict[str, Dims]:
    """What a model gives, and the dims: read from two calls of other sizes, since configs do not say."""
    one, other = (answers(model, _sample(model, shapes(model), call)) for call in (0, 1))
    return {name: _dims(one[name].shape, other[name].shape) for name in one}


@torch.no_grad()
def answers(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a model says: `logits`, or `start_logits` and `end_logits`."""
    return {name: value for name, value in model(**inputs).items() if name.endswith("logits")}


def shapes(model: PreTrainedModel) -> dict[str, Dims]:
    """The inputs a model takes, and their dims."""
    config: Any = model.config
    if model.main_input_name == "pixel_values":
        side = config.image_size
        height, width = side if isinstance(side, (list, tuple)) else (side, side)
        return {"pixel_values": (BATCH, config.num_channels, height, width)}
    dims: Dims = (BATCH, CHOICES, LENGTH) if type(model).__name__.endswith("ForMultipleChoice") else (BATCH, LENGTH)
    names = ["input_ids", "attention_mask"]
    taken = inspect.signature(model.forward).parameters
    # A model of one token type has nothing to be told; Optimum leaves the input away.
    if "token_type_ids" in taken and getattr(config, "type_vocab_size", 1) > 1:
        names.append("token_type_ids")
    return dict.fromkeys(names, dims)


class _Flat(nn.Module):
    """The model as a function of plain tensors."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        output = self.model(**inputs)
        return [value for name, value in output.items() if name.endswith("logits")]


def _sample(model: PreTrainedModel, inputs: dict[str, Dims], call: int) -> dict[str, Tensor]:
    sizes = {name: [SIZES[dim][call] if isinstance(dim, str) else dim for dim in dims] for name, dims in inputs.items()}
    ones = {name: torch.ones(size, dtype=torch.long) for name, size in sizes.items() if name != "pixel_values"}
    images = {name: torch.zeros(size, dtype=model.dtype) for name, size in sizes.items() if name == "pixel_values"}
    typed = {"token_type_ids": torch.zeros_like(ones["token_type_ids"])} if "token_type_ids" in ones else {}
    return {**ones, **images, **typed}


def _dims(first: torch.Size, second: torch.Size) -> Dims:
    """The names of the sizes that changed with the call, and the numbers that did not."""
    names = {pair: name for name, pair in SIZES.items()}
    return tuple(one if one == other else names[one, other] for one, other in zip(first, second, strict=True))
