"""How far an exported graph is from PyTorch: the inputs to compare on, differences, and the layer where they begin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prune.errors import PruneError
from prune.model.graph import open_graph, outputs

BATCHES, LENGTHS = (1, 3), (1, 9, 32)
SEED = 0  # of the inputs compared on
SMALL = 100_000_000  # parameters below which one thread does
Padding = Literal["unpadded", "left-padded", "right-padded"]


@dataclass(frozen=True)
class Written:
    """A graph on disk beside the module it was made of. `ends` are paths of its layers -> the value that each gives.

    `module` is in float32 on the CPU. `tolerance` is the largest difference allowed, as a share of the largest logit.
    """

    path: Path
    module: PreTrainedModel
    ends: Mapping[str, str]
    tolerance: float


class Point(NamedTuple):
    """One batch to compare on; row r of a padded one is padded by r thirds of the length, a single row by one."""

    batch: int
    length: int
    padding: Padding = "unpadded"

    def __str__(self) -> str:
        return f"batch {self.batch}, length {self.length}, {self.padding}"


class Worst(NamedTuple):
    """The largest difference so far, as a share of the largest logit, where it was, and what the module was given."""

    difference: float
    where: str
    given: Mapping[str, Tensor]


def grid(limit: int, paddings: Sequence[Padding]) -> list[Point]:
    """Batches x lengths x paddings, up to the longest that the model has positions for."""
    lengths = sorted({min(length, limit) for length in LENGTHS})
    every = [Point(batch, length, padding) for length in lengths for batch in BATCHES for padding in paddings]
    return [point for point in every if point.length >= 3 or point.padding == "unpadded"]


def longest(model: PreTrainedModel, *, more: int = 0) -> int:
    """Tokens that the model has positions for, where it is bounded, at most the grid's longest and `more`."""
    config: Any = model.config.get_text_config()
    bound = getattr(config, "max_position_embeddings", None)
    first = config.pad_token_id + 1 if "roberta" in config.model_type else 0  # it counts from past the padding's id
    return min(bound - first if bound else 2**31, max(LENGTHS) + more)


def tokens(model: PreTrainedModel, point: Point) -> tuple[Tensor, Tensor]:
    """Random ids and their attention mask, both (batch, length)."""
    generator = torch.Generator().manual_seed(SEED)
    embeddings: Any = model.get_input_embeddings()
    ids = torch.randint(0, embeddings.weight.shape[0], (point.batch, point.length), generator=generator)
    mask = torch.ones_like(ids)
    if point.padding != "unpadded":
        for row in range(point.batch):
            mask[row, : (row if point.batch > 1 else 1) * point.length // 3] = 0
    return ids, mask.flip(1) if point.padding == "right-padded" else mask


def difference(expected: Tensor, found: Tensor, mask: Tensor | None, where: str, given: Mapping[str, Tensor]) -> Worst:
    """The largest difference of logits, with `mask` (batch, length) where there is attention.

    A row of padding attends to nothing, and its logits are idle.
    """
    attended = torch.ones(expected.shape[:1], dtype=torch.bool) if mask is None else mask.bool()
    gaps = (expected - found.float()).abs().reshape(*attended.shape, -1).amax(-1).masked_fill(~attended, 0)
    place = torch.unravel_index(gaps.argmax(), gaps.shape)  # argmax finds NaN first
    share = (gaps[place] / expected[attended].abs().max().clamp(min=1e-30)).item()
    names = ("row", "position") if mask is not None else ("row",)
    stated = ", ".join(f"{name} {int(index)}" for name, index in zip(names, place, strict=True))
    return Worst(share, f"{where}: {stated}", given)


def size(worst: Worst) -> float:
    """To find the worst of several by: NaN is the worst of all."""
    return float("inf") if worst.difference != worst.difference else worst.difference


def refuse_beyond(written: Written, worst: Worst) -> None:
    """PruneError when a graph is further from PyTorch than its tolerance: by how much, where, from which layer on."""
    if not worst.difference <= written.tolerance:  # so that NaN fails too
        raise PruneError(
            f"the graph differs from PyTorch: logits by {worst.difference:.1e} of the largest"
            f" (allowed: {written.tolerance:.0e}) at {worst.where}; {_culprit(written, worst.given)};"
            " nothing was written",
            where="onnx",
        )


def _culprit(written: Written, given: Mapping[str, Tensor]) -> str:
    """The first layer whose output differs when all is computed in one call."""
    expected = _layers_of_module(written, given)
    found = _layers_of_graph(written, given)
    for path in written.ends:
        if path in found and found[path].shape == expected[path].shape:
            gap = (found[path] - expected[path]).abs().max() / expected[path].abs().max().clamp(min=1e-30)
            if not gap <= written.tolerance:
                return f"the first layer that differs is {path}, by {float(gap):.1e} of its largest value"
    return "all layers agree in one call, so it is what comes after them, or the cache"


@torch.no_grad()
def _layers_of_module(written: Written, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def keep(path: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            found[path] = output if isinstance(output, Tensor) else output[0]

        return hook

    handles = [written.module.get_submodule(path).register_forward_hook(keep(path)) for path in written.ends]
    try:
        written.module(**given)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _layers_of_graph(written: Written, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values at the layers' ends, read by giving the graph more outputs."""
    from onnxscript import ir

    model = ir.load(written.path)
    made = {value.name: value for node in model.graph for value in node.outputs}
    ends = {path: made[name] for path, name in written.ends.items() if name in made}
    model.graph.outputs.extend(value for value in ends.values() if not value.is_graph_output())
    opened = written.path.with_name("opened.onnx")
    ir.save(model, opened)
    try:
        found = outputs(open_graph(opened), given)
    finally:
        opened.unlink()
    return {path: found[value.name].float() for path, value in ends.items() if value.name is not None}


@contextmanager
def threads(model: PreTrainedModel) -> Iterator[None]:
    """One thread for a small model: to wake others takes longer than the work, on a busy machine a hundred times."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if model.num_parameters() < SMALL else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
