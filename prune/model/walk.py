"""The walk: the model one layer at a time, each filled with its weights, given what enters it, and freed again.

The only way activations are gathered. Layers are run by transformers' own code with transformers' own masks and
positions: the model's forward is run once per batch with its layers standing aside, and what each would have been
given is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prune.errors import PruneError
from prune.model import skeleton
from prune.model.model import Model
from prune.progress import Progress

Batch = dict[str, Tensor]
Given = list[dict[str, Any]]  # the keyword arguments of each layer, for one batch
INPUTS = ("input_ids", "attention_mask")


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

    def forward(self, batch: int) -> Tensor:
        return self.call(batch, self.inputs[batch])

    def run(self) -> list[Tensor]:
        """Every batch through the layer, once; the walk does this itself for a layer that was not run."""
        if not self.outputs:
            self.outputs = [self.forward(b) for b in range(len(self.batches))]
        return self.outputs

    def mask(self, batch: int) -> Tensor | None:
        """Which positions of a batch are text: bool (batch, length), or None when all are."""
        found = self.batches[batch].get("attention_mask")
        return None if found is None or bool(found.all()) else found.bool()


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

    `dtype` is what is computed in (None: as stored). One layer's weights are in memory at a time, and the hidden
    states of all batches at one depth. Raises PruneError naming the layer when what leaves it is not finite.
    """
    device = torch.device(device)
    root = skeleton.skeleton(model)
    layers = root.get_submodule(model.family.layers)
    assert isinstance(layers, nn.ModuleList), model.family.layers
    batches = [{key: batch[key].to(device) for key in INPUTS if key in batch} for batch in batches]
    with torch.no_grad():
        hidden, given = _enter(model, root, layers, batches, device, dtype)
    with progress.track("layers", len(layers)) if progress else nullcontext(_still) as advance:
        for index, layer in enumerate(layers):
            skeleton.fill(root, model.family.layer(index), model.tensors, device, dtype)
            visit = Visit(index, layer, hidden, batches, _through(layer, index, given))
            yield visit
            hidden = visit.run()
            _refuse_nonfinite(hidden, model.family.layer(index))
            skeleton.drop(layer)
            advance()
    if head:
        finish = torch.no_grad()(lambda b, state: _finish(root, layers, batches[b], state))
        with _outer(model, root, device, dtype):
            yield Visit(len(layers), root, hidden, batches, finish)


def _still(count: int = 1) -> None:
    """The advance of a walk that nobody watches."""


def _through(layer: nn.Module, index: int, given: list[Given]) -> Callable[[int, Tensor], Tensor]:
    """The function that sends a hidden state of a batch through a layer."""

    def call(batch: int, state: Tensor) -> Tensor:
        with torch.no_grad():
            return _state(layer(state, **given[batch][index]))

    return call


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
    device: torch.device,
    dtype: torch.dtype | None,
) -> tuple[list[Tensor], list[Given]]:
    """What enters the first layer, and what else every layer is given, for each batch."""
    hidden, given = [], []
    with _outer(model, root, device, dtype):
        for batch in batches:
            seen: list[Tensor] = []
            keywords: Given = []

            def note(state: Tensor, *, seen: list = seen, keywords: list = keywords, **given: Any) -> Tensor:  # type: ignore[type-arg]
                seen.append(state)
                keywords.append(given)
                return state

            with _aside(layers, note):
                root.base_model(**batch, use_cache=False)
            hidden.append(seen[0])
            given.append(keywords)
    return hidden, given


def _finish(root: PreTrainedModel, layers: nn.ModuleList, batch: Batch, state: Tensor) -> Tensor:
    """The model's outputs for hidden states that left the last layer."""
    inputs = {key: value for key, value in batch.items() if key != "input_ids"}
    with _aside(layers, lambda _state, **_: state):
        found: Tensor = root(inputs_embeds=state, **inputs, use_cache=False).logits
    return found


@contextmanager
def _aside(layers: nn.ModuleList, instead: Callable[..., Tensor]) -> Iterator[None]:
    """Layers do `instead` while inside."""
    for layer in layers:
        layer.forward = instead  # type: ignore[assignment]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@contextmanager
def _outer(
    model: Model, root: PreTrainedModel, device: torch.device, dtype: torch.dtype | None
) -> Iterator[None]:
    """Modules outside the layers get their weights at first use, and lose them at the end."""
    inside = model.family.layers + "."
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


def _state(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def _refuse_nonfinite(hidden: list[Tensor], name: str) -> None:
    if not all(bool(torch.isfinite(state).all()) for state in hidden):
        raise PruneError(f"the hidden states that leave {name} are not finite; compute in float32 or bfloat16")
