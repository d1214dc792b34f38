"""Whether the graph of a model that answers in one call computes what PyTorch computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prune.exports import encoder, parity
from prune.exports.parity import Padding, Point, Worst, Written
from prune.model.graph import open_graph, outputs
from prune.progress import Advance

PADDINGS: tuple[Padding, ...] = ("unpadded", "left-padded", "right-padded")
CHOICES = 2  # of a multiple choice


def compare(written: Written, *, advance: Advance) -> dict[str, Any]:
    """Run the graph in ONNX Runtime beside its module.

    Gives `tolerance`, `max_difference` (of logits, at attended positions where there is one for each token, as a share
    of the largest), `worst`, `points`, and `same_answers`: how often the largest logit is the same one, and of how
    many. Raises PruneError as `parity.refuse_beyond`.
    """
    module = written.module
    with parity.threads(module):
        graph, points = open_graph(written.path), _points(module)
        tokenwise = {name for name, dims in encoder.answer_shapes(module).items() if encoder.LENGTH in dims}
        worst, same = Worst(-1.0, "", {}), torch.zeros(2, dtype=torch.long)
        for point in points:
            feeds, mask = _feeds(module, point)
            found = outputs(graph, feeds)
            for name, expected in encoder.answers(module, feeds).items():
                each = mask if name in tokenwise else None
                where = str(point) if mask is not None else f"batch {point.batch}"
                worst = max(worst, parity.difference(expected, found[name], each, where, feeds), key=parity.size)
                same += _same(expected, found[name].float(), each)
            advance()
        parity.refuse_beyond(written, worst)
    return {
        "tolerance": written.tolerance,
        "max_difference": worst.difference,
        "worst": worst.where,
        "points": len(points),
        "same_answers": same.tolist(),
    }


def rounds(model: PreTrainedModel) -> int:
    """How many times `compare` advances."""
    return len(_points(model))


def _points(model: PreTrainedModel) -> list[Point]:
    if model.main_input_name == "pixel_values":
        return [Point(batch, 1) for batch in parity.BATCHES]
    return parity.grid(parity.longest(model), PADDINGS)


def _feeds(model: PreTrainedModel, point: Point) -> tuple[dict[str, Tensor], Tensor | None]:
    """Inputs of one batch, and where there is text, the mask that tells which tokens are."""
    generator = torch.Generator().manual_seed(parity.SEED)
    dims = encoder.shapes(model)
    if "pixel_values" in dims:
        sizes = [point.batch if isinstance(dim, str) else dim for dim in dims["pixel_values"]]
        return {"pixel_values": torch.randn(sizes, generator=generator)}, None
    several = encoder.CHOICES in dims["input_ids"]
    ids, mask = parity.tokens(model, point._replace(batch=point.batch * (CHOICES if several else 1)))
    feeds = {"input_ids": ids, "attention_mask": mask}
    if "token_type_ids" in dims:
        feeds["token_type_ids"] = (torch.arange(point.length) >= point.length // 2).long().expand_as(ids)
    if several:
        feeds = {name: value.reshape(point.batch, CHOICES, -1) for name, value in feeds.items()}
    return feeds, feeds["attention_mask"]


def _same(expected: Tensor, found: Tensor, mask: Tensor | None) -> Tensor:
    """How many answers (the largest logit of a row, or of a token) are the same, and of how many."""
    if mask is not None and expected.ndim == mask.ndim:  # one logit a token: start, end, or whether it was replaced
        expected, found = (torch.stack([one, -one], dim=-1) for one in (expected, found))
    equal = expected.argmax(-1) == found.argmax(-1)
    chosen = equal if mask is None else equal[mask.bool()]
    return torch.tensor([int(chosen.sum()), chosen.numel()])
