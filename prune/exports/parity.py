"""Whether an exported graph computes what PyTorch computes: logits on a grid, decoding in pieces, greedy tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from prune.errors import PruneError
from prune.model.graph import open_graph, positions, run_graph
from prune.progress import Advance

BATCHES, LENGTHS, NEW_TOKENS = (1, 3), (1, 9, 32), 16
SEED = 0  # of the token ids compared on
SMALL = 100_000_000  # parameters below which one thread does


class Point(NamedTuple):
    """One batch to compare on; row r of a left-padded one is padded by r thirds of the length, a single row by one."""

    batch: int
    length: int
    padded: bool

    def __str__(self) -> str:
        return f"batch {self.batch}, length {self.length}, {'left-padded' if self.padded else 'unpadded'}"


class Worst(NamedTuple):
    """The largest difference so far, as a share of the largest logit, and where it was."""

    difference: float
    where: str


def compare(path: Path, model: PreTrainedModel, *, tolerance: float, advance: Advance) -> dict[str, Any]:
    """Run the graph at `path` in ONNX Runtime beside `model`, which is float32 on the CPU and given up to this.

    Gives `tolerance`, `max_difference` (of logits at attended positions, as a share of the largest logit), `worst`
    (where that was), `points` (batches compared), `greedy_tokens` (compared with `generate`), and `notes` about near
    ties. Raises PruneError with the largest difference and its place when it is beyond `tolerance`, or when greedy
    tokens differ although PyTorch's logits of the two tokens are further apart than the tolerance explains.
    """
    with _threads(model):
        session, limit = open_graph(path), _longest(model)
        worst, points = Worst(-1.0, ""), _grid(limit)
        for point in points:
            worst = max(worst, *_differences(session, model, point), key=_size)
            advance()
        _refuse_beyond(tolerance, worst)
        equal, notes = 0, list[str]()
        for point in _prompts(limit):
            count, ties = _greedy(session, model, point, min(NEW_TOKENS, limit - point.length), tolerance)
            equal, notes = equal + count, notes + ties
            advance()
    return {
        "tolerance": tolerance,
        "max_difference": worst.difference,
        "worst": worst.where,
        "points": len(points),
        "greedy_tokens": equal,
        "notes": notes,
    }


def rounds(model: PreTrainedModel) -> int:
    """How many times `compare` advances."""
    limit = _longest(model)
    return len(_grid(limit)) + len(_prompts(limit))


def _refuse_beyond(tolerance: float, worst: Worst) -> None:
    if not worst.difference <= tolerance:  # so that NaN fails too
        raise PruneError(
            f"the graph differs from PyTorch: logits by {worst.difference:.1e} of the largest"
            f" (allowed: {tolerance:.0e}) at {worst.where}; nothing was written",
            where="onnx",
        )


@contextmanager
def _threads(model: PreTrainedModel) -> Iterator[None]:
    """One thread for a small model: to wake others takes longer than the work, on a busy machine a hundred times."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if model.num_parameters() < SMALL else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _size(worst: Worst) -> float:
    return float("inf") if worst.difference != worst.difference else worst.difference  # NaN is the worst of all


def _longest(model: PreTrainedModel) -> int:
    """Tokens that the model has positions for, where it is bounded."""
    bound = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return min(bound or 2**31, max(LENGTHS) + NEW_TOKENS)


def _grid(limit: int) -> list[Point]:
    lengths = sorted({min(length, limit) for length in LENGTHS})
    every = [Point(batch, length, padded) for length in lengths for batch in BATCHES for padded in (False, True)]
    return [point for point in every if point.length >= 3 or not point.padded]


def _prompts(limit: int) -> list[Point]:
    return [Point(2, min(8, limit // 2), padded=False), Point(3, min(9, limit // 2), padded=True)]


def _inputs(model: PreTrainedModel, point: Point) -> tuple[Tensor, Tensor]:
    """Random ids and their attention mask, both (batch, length)."""
    generator = torch.Generator().manual_seed(SEED)
    embeddings: Any = model.get_input_embeddings()
    ids = torch.randint(0, embeddings.weight.shape[0], (point.batch, point.length), generator=generator)
    mask = torch.ones_like(ids)
    if point.padded:
        for row in range(point.batch):
            mask[row, : (row if point.batch > 1 else 1) * point.length // 3] = 0
    return ids, mask


@torch.no_grad()
def _differences(session: Any, model: PreTrainedModel, point: Point) -> Iterator[Worst]:
    """The largest differences in one call and, where there is room, in three: prefill, one token, several tokens."""
    ids, mask = _inputs(model, point)
    places = {"position_ids": positions(mask)} if _has_positions(session) else {}
    expected = model(input_ids=ids, attention_mask=mask, use_cache=False, **places).logits
    found, _ = run_graph(session, ids, mask)
    yield _worst(expected, found, mask, f"{point}, in one call")
    if point.length >= 3:
        third = point.length // 3
        found = _in_pieces(session, ids, mask, [0, third, third + 1, point.length])
        yield _worst(expected, found, mask, f"{point}, decoding after {third} and {third + 1} tokens")


def _has_positions(session: Any) -> bool:
    return any(value.name == "position_ids" for value in session.get_inputs())


def _in_pieces(session: Any, ids: Tensor, mask: Tensor, cuts: list[int]) -> Tensor:
    found, past = [], None
    for start, end in pairwise(cuts):
        logits, past = run_graph(session, ids[:, start:end], mask[:, :end], past)
        found.append(logits)
    return torch.cat(found, dim=1)


def _worst(expected: Tensor, found: Tensor, mask: Tensor, where: str) -> Worst:
    """The largest difference where there is attention: a row of padding attends to nothing, and its logits are idle."""
    attended = mask.bool()
    differences = (expected - found).abs().amax(-1).masked_fill(~attended, 0)  # (batch, length)
    row, position = divmod(int(differences.argmax()), mask.shape[1])  # argmax finds NaN first
    share = (differences[row, position] / expected[attended].abs().max().clamp(min=1e-30)).item()
    return Worst(share, f"{where}: row {row}, position {position}")


@torch.no_grad()
def _greedy(session: Any, model: PreTrainedModel, point: Point, new: int, tolerance: float) -> tuple[int, list[str]]:
    """How many tokens equal those of `generate`, and a note for each that may differ because PyTorch has a near tie.

    The graph is fed PyTorch's tokens, so that a tie does not end the comparison.
    """
    ids, mask = _inputs(model, point)
    tokens, logits = _generated(model, ids, mask, new)
    notes, past, equal = [], None, 0
    for step in range(new):
        mine, past = run_graph(session, ids, mask, past)
        for row, (theirs, ours) in enumerate(zip(tokens[:, step], mine[:, -1].argmax(-1), strict=True)):
            gap = ((logits[step][row, theirs] - logits[step][row, ours]) / logits[step][row].abs().max()).item()
            place = f"{point}: row {row}, new token {step}"
            if not gap <= 2 * tolerance:  # each of the two logits may be off by the tolerance
                raise PruneError(
                    f"greedy decoding differs from PyTorch's generate at {place}: {int(ours)} for {int(theirs)}, whose"
                    f" logits differ by {gap:.1e} of the largest; nothing was written",
                    where="onnx",
                )
            if theirs == ours:
                equal += 1
            else:
                notes.append(f"near tie of greedy tokens at {place}: logits {gap:.1e} of the largest apart")
        ids, mask = tokens[:, step : step + 1], torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return equal, notes


def _generated(model: PreTrainedModel, ids: Tensor, mask: Tensor, new: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The tokens (batch, new) that PyTorch's `generate` takes greedily, and its logits of each (batch, vocabulary)."""
    # The model's own settings may sample, penalise or stop early; only the plain greedy choice tells graphs apart.
    model.generation_config = GenerationConfig(pad_token_id=0)
    generate: Any = model.generate
    output = generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=new,
        min_new_tokens=None,
        do_sample=False,
        eos_token_id=None,
        use_cache=True,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert len(output.logits) == new, (len(output.logits), new)
    return output.sequences[:, ids.shape[1] :], output.logits
