"""Whether the graph of a causal language model computes what PyTorch computes: logits, pieces, greedy tokens."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from prune.errors import PruneError
from prune.exports import parity
from prune.exports.parity import Padding, Point, Worst, Written
from prune.model.graph import open_graph, positions, run_graph
from prune.progress import Advance

NEW_TOKENS = 16
PADDINGS: tuple[Padding, ...] = ("unpadded", "left-padded")


def compare(written: Written, *, advance: Advance) -> dict[str, Any]:
    """Run the graph in ONNX Runtime beside its module, which is given up to this.

    Gives `tolerance`, `max_difference` (of logits at attended positions, as a share of the largest logit), `worst`
    (where that was), `points` (batches compared), `greedy_tokens` (equal to those of `generate`, and of how many), and
    `notes` about near ties. Raises PruneError with the largest difference, its place and the layer where it begins when
    it is beyond the tolerance, or when greedy tokens differ although PyTorch's logits of the two tokens are further
    apart than the tolerance explains.
    """
    module = written.module
    with parity.threads(module):
        graph, limit = open_graph(written.path), _longest(module)
        worst, points = Worst(-1.0, "", {}), parity.grid(limit, PADDINGS)
        for point in points:
            worst = max(worst, *_differences(graph, module, point), key=parity.size)
            advance()
        parity.refuse_beyond(written, worst)
        equal, total, notes = 0, 0, list[str]()
        for point in _prompts(limit):
            new = min(NEW_TOKENS, limit - point.length)
            count, ties = _greedy(graph, module, point, new, written.tolerance)
            equal, total, notes = equal + count, total + new * point.batch, notes + ties
            advance()
    return {
        "tolerance": written.tolerance,
        "max_difference": worst.difference,
        "worst": worst.where,
        "points": len(points),
        "greedy_tokens": [equal, total],
        "notes": notes,
    }


def rounds(model: PreTrainedModel) -> int:
    """How many times `compare` advances."""
    limit = _longest(model)
    return len(parity.grid(limit, PADDINGS)) + len(_prompts(limit))


def _longest(model: PreTrainedModel) -> int:
    return parity.longest(model, more=NEW_TOKENS)


def _prompts(limit: int) -> list[Point]:
    return [Point(2, min(8, limit // 2)), Point(3, min(9, limit // 2), "left-padded")]


@torch.no_grad()
def _differences(graph: Any, model: PreTrainedModel, point: Point) -> Iterator[Worst]:
    """The largest differences in one call and, where there is room, in three: prefill, one token, several tokens."""
    ids, mask = parity.tokens(model, point)
    given = {"input_ids": ids, "attention_mask": mask}
    if any(value.name == "position_ids" for value in graph.get_inputs()):
        given["position_ids"] = positions(mask)
    expected = model(**given, use_cache=False).logits
    yield parity.difference(expected, run_graph(graph, ids, mask)[0], mask, f"{point}, in one call", given)
    if point.length >= 3:
        third = point.length // 3
        found = _in_pieces(graph, ids, mask, [0, third, third + 1, point.length])
        where = f"{point}, decoding after {third} and {third + 1} tokens"
        yield parity.difference(expected, found, mask, where, given)


def _in_pieces(graph: Any, ids: Tensor, mask: Tensor, cuts: list[int]) -> Tensor:
    found, past = [], None
    for start, end in pairwise(cuts):
        logits, past = run_graph(graph, ids[:, start:end], mask[:, :end], past)
        found.append(logits)
    return torch.cat(found, dim=1)


@torch.no_grad()
def _greedy(graph: Any, model: PreTrainedModel, point: Point, new: int, tolerance: float) -> tuple[int, list[str]]:
    """How many tokens equal those of `generate`, and a note for each that may differ because PyTorch has a near tie.

    The graph is fed PyTorch's tokens, so that a tie does not end the comparison.
    """
    ids, mask = parity.tokens(model, point)
    tokens, logits = _generated(model, ids, mask, new)
    notes, past, equal = [], None, 0
    for step in range(new):
        mine, past = run_graph(graph, ids, mask, past)
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
