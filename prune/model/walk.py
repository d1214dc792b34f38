"""The walk: the model one layer at a time, each filled with its weights, given what enters it, and freed again.

The only way activations are gathered. Layers are run by transformers' own code with transformers' own masks and
positions: the model's forward is run once per batch with its layers standing aside, and what each would have been
given is kept.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prune.errors import PruneError
from prune.model import skeleton
from prune.model.family import Family
from prune.model.model import Model
from prune.progress import Progress

Batch = dict[str, Tensor]
Given = list[dict[str, Any]]  # the keyword arguments of each layer, for one batch
Carried = dict[str, Any]  # what a layer hands on to all that follow, for one batch
Place = tuple[torch.device, torch.dtype | None]  # where and in what to compute
INPUTS = (
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "pixel_values",
    "decoder_input_ids",
    "decoder_attention_mask",
)


@dataclass
class Visit:
    """One stop of the walk: a layer (or, last, the head) that is filled with its weights.

    `inputs[b]` is the hidden state (batch, length, width) that enters for batch b. `forward(b)` runs batch b and gives
    the hidden state that leaves, or the logits (batch, length, vocabulary) at the head. Assign `outputs` to send
    something else on to the next layer.
    """

    index: int
    module: nn.Module
    inputs: list[Tensor]
    batches: Sequence[Batch]
    call: Callable[[int, Tensor], Tensor]
    outputs: list[Tensor] = field(default_factory=list)
    padding: str = "attention_mask"  # the batch's mask for the positions of these hidden states

    def forward(self, batch: int) -> Tensor:
        return self.call(batch, self.inputs[batch])

    def run(self) -> list[Tensor]:
        """Every batch through the layer, once; the walk does this itself for a layer that was not run."""
        if not self.outputs:
            self.outputs = [self.forward(b) for b in range(len(self.batches))]
        return self.outputs

    def free(self) -> None:
        """Give the layer's memory back before the walk does; only for a layer that was run."""
        assert self.outputs, self.index
        skeleton.drop(self.module)

    def tokens(self, batch: int) -> int:
        """How many positions of a batch are text."""
        mask = self.mask(batch)
        return self.inputs[batch].shape[:2].numel() if mask is None else int(mask.sum())

    def mask(self, batch: int) -> Tensor | None:
        """Which positions of a batch are text: bool (batch, length), or None when all are."""
        found = self.batches[batch].get(self.padding)
        return None if found is None or bool(found.all()) else found.bool().flatten(0, -2)  # choices stand one by one


def walk(
    model: Model,
    batches: Sequence[Batch],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    head: bool = False,
    progress: Progress | None = None,
) -> Iterator[Visit]:
    """Visit the layers in order, with what enters each; with `head`, a last visit turns hidden states into logits.

    Batches are mappings of `INPUTS`, whichever the model takes. `dtype` is what is computed in (None: as stored). One
    layer's weights are in memory at a time, and the hidden states of all batches at one depth. An encoder's layers
    come before the decoder's. Raises PruneError naming the layer when what leaves it is not finite.
    """
    place = (torch.device(device), dtype)
    root = skeleton.skeleton(model)
    batches = [{key: batch[key].to(place[0]) for key in INPUTS if key in batch} for batch in batches]
    _refuse_unknown_tokens(model, batches)
    encoder = model.numbers.get("encoder_layers", 0)
    count = model.numbers["layers"]
    encoded: list[Tensor] = []
    with progress.track("layers", count) if progress else nullcontext(_still) as advance:
        for stack in (range(encoder), range(encoder, count)):
            if not stack:
                continue
            layers = root.get_submodule(model.layer(stack[0]).rpartition(".")[0])
            assert isinstance(layers, nn.ModuleList) and len(layers) == len(stack), (stack, layers)
            hidden, given = _enter(model, root, layers, batches, place, encoded)
            padding = "decoder_attention_mask" if encoder and stack[0] == encoder else "attention_mask"
            for index, layer in zip(stack, layers, strict=True):
                skeleton.fill(root, model.layer(index), model.tensors, *place)
                carried: list[Carried] = [{} for _ in batches]
                call = _through(layer, index - stack[0], given, carried, model.family)
                visit = Visit(index, layer, hidden, batches, call, padding=padding)
                yield visit
                hidden = visit.run()
                if model.family.carries:
                    _hand_on(visit, carried, given)
                _refuse_nonfinite(hidden, model.layer(index))
                skeleton.drop(layer)
                advance()
            if stack[-1] < encoder:
                encoded = _encoded(model, root, layers, batches, hidden, place)
    if head:
        finish = torch.no_grad()(
            lambda b, state: _finish(model, root, layers, batches[b], state, encoded[b] if encoded else None)
        )
        with _outer(model, root, *place):
            yield Visit(count, root, hidden, batches, finish, padding=padding)


def _still(count: int = 1) -> None:
    """The advance of a walk that nobody watches."""


def _through(
    layer: nn.Module, place: int, given: list[Given], carried: list[Carried], family: Family
) -> Callable[[int, Tensor], Tensor]:
    """The function that sends a hidden state of a batch through a layer."""

    def call(batch: int, state: Tensor) -> Tensor:
        with torch.no_grad():
            output = layer(state, **given[batch][place])
        carried[batch].update({name: output[position] for name, position in family.carries.items()})
        return output if isinstance(output, Tensor) else output[0]

    return call


def _hand_on(visit: Visit, carried: list[Carried], given: list[Given]) -> None:
    """What a layer computes for all that follow (T5's position bias) goes on to them, even if the layer is left out."""
    for batch, values in enumerate(carried):
        if not values:
            visit.forward(batch)
        for arguments in given[batch]:
            arguments.update(values)


def logits(model: Model, batches: Sequence[Batch], **options: Any) -> Iterator[Tensor]:
    """The logits of each batch in turn, (batch, length, vocabulary), from one walk. Options are those of `walk`."""
    for visit in walk(model, batches, head=True, **options):
        if isinstance(visit.module, PreTrainedModel):
            for batch in range(len(batches)):
                yield visit.forward(batch)


def _enter(
    model: Model,
    root: PreTrainedModel,
    layers: nn.ModuleList,
    batches: Sequence[Batch],
    place: Place,
    encoded: list[Tensor],
) -> tuple[list[Tensor], list[Given]]:
    """What enters the first layer, and what else every layer is given, for each batch."""
    hidden, given = [], []
    with _outer(model, root, *place):
        for number, given_batch in enumerate(batches):
            # The choices of an example (batch, choices, length) go through the layers one by one.
            batch = {key: value.flatten(0, 1) if value.ndim == 3 else value for key, value in given_batch.items()}
            seen: list[Tensor] = []
            keywords: Given = []
            with _aside(layers, model.family, _noting(layers[0], seen, keywords)):
                _forward(model, root.base_model, batch, encoded[number] if encoded else None)
            hidden.append(seen[0])
            given.append(keywords)
    return hidden, given


def _noting(layer: nn.Module, seen: list[Tensor], keywords: Given) -> Callable[..., Tensor]:
    """What a layer does in place of its work: note all that it is given, by name."""
    signature = inspect.signature(type(layer).forward)

    def note(state: Tensor, *args: Any, **named: Any) -> Tensor:
        bound = signature.bind(layer, state, *args, **named).arguments
        extra = bound.pop(next((p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), ""), {})
        seen.append(state)
        keywords.append({**dict(list(bound.items())[2:]), **extra})
        return state

    return note


def _forward(model: Model, module: Any, batch: Batch, encoded: Tensor | None) -> Any:
    """A forward pass of the whole or of its base model, with an encoder's result where there is one."""
    takes = inspect.signature(type(module).forward).parameters
    inputs: dict[str, Any] = {key: value for key, value in batch.items() if key in takes}
    if encoded is not None:
        inputs["encoder_outputs"] = (encoded,)
        if "decoder_input_ids" not in inputs:
            raise PruneError("an encoder-decoder needs batches with decoder_input_ids")
    elif model.family.encoder:  # the encoder comes first, alone
        module = module.get_encoder()
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask") if key in batch}
    if "use_cache" in inspect.signature(type(module).forward).parameters:
        inputs["use_cache"] = False
    return module(**inputs)


def _encoded(
    model: Model,
    root: PreTrainedModel,
    layers: nn.ModuleList,
    batches: Sequence[Batch],
    hidden: list[Tensor],
    place: Place,
) -> list[Tensor]:
    """What an encoder hands to the decoder, for each batch."""
    found = []
    with torch.no_grad(), _outer(model, root, *place):
        for batch, state in zip(batches, hidden, strict=True):
            with _aside(layers, model.family, lambda *_, state=state, **__: state):
                found.append(_forward(model, root.base_model, batch, None)[0])
    return found


def _finish(
    model: Model, root: PreTrainedModel, layers: nn.Module, batch: Batch, state: Tensor, encoded: Tensor | None
) -> Tensor:
    """The model's outputs for hidden states that left the last layer; heads look at the true inputs too."""
    with _aside(layers, model.family, lambda *_, **__: state):
        found = _forward(model, root, batch, encoded)
    if "logits" in found:
        said: Tensor = found.logits
        return said
    return torch.stack((found.start_logits, found.end_logits), dim=-1)  # where an answer begins and ends


@contextmanager
def _aside(layers: nn.Module, family: Family, instead: Callable[..., Tensor]) -> Iterator[None]:
    """Layers do `instead` while inside, and return it in the shape that their callers unpack."""

    def forward(*args: Any, **named: Any) -> Any:
        state = instead(*args, **named)
        return (state, *[None] * (family.returns - 1)) if family.returns else state

    for layer in layers.children():
        layer.forward = forward
    try:
        yield
    finally:
        for layer in layers.children():
            del layer.forward


@contextmanager
def _outer(model: Model, root: PreTrainedModel, device: torch.device, dtype: torch.dtype | None) -> Iterator[None]:
    """Modules outside the layers get their weights at first use, and lose them at the end."""
    inside = tuple(f"{path}." for path in (model.family.layers, model.family.encoder) if path)
    filled: list[nn.Module] = []
    hooks = []
    for path, module in root.named_modules():
        own = any(True for _ in module.parameters(recurse=False)) or any(True for _ in module.buffers(recurse=False))
        if own and not path.startswith(inside):

            def fill(module: nn.Module, *_: Any, path: str = path) -> None:
                if module not in filled:
                    skeleton.fill(root, path, model.tensors, device, dtype)
                    filled.append(module)

            hooks.append(module.register_forward_pre_hook(fill))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module in filled:
            skeleton.drop(module)


def _refuse_unknown_tokens(model: Model, batches: Sequence[Batch]) -> None:
    """Ids beyond the embedding would end in an index error deep inside; they come from a tokenizer of another model."""
    ids = [batch["input_ids"] for batch in batches if "input_ids" in batch and batch["input_ids"].numel()]
    size = model.config.get_text_config().vocab_size if ids else 0
    largest = max((int(found.max()) for found in ids), default=0)
    if ids and largest >= size:
        raise PruneError(f"token id {largest} is not among the model's {size}: is the tokenizer another model's?")


def _refuse_nonfinite(hidden: list[Tensor], name: str) -> None:
    if not all(bool(torch.isfinite(state).all()) for state in hidden):
        raise PruneError(f"the hidden states that leave {name} are not finite; compute in float32 or bfloat16")
