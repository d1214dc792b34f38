"""Sensitivity: what predictions lose as each group shrinks alone, from one walk with masks.

The walk carries, beside the model's own hidden states, those of every variant: a variant leaves the model where its
units are masked, and goes on through the layers that follow. What a mask computes is what a cut computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prune.errors import PruneError
from prune.model.groups import HALVES, Group, groups, kinds
from prune.model.halves import left_out
from prune.model.model import Model
from prune.model.walk import Batch, Visit, walk
from prune.progress import Progress
from prune.remove.choose import lowest_removed
from prune.remove.divergence import kl
from prune.remove.gather import gather
from prune.remove.prove import masked_inputs, zeroing
from prune.remove.score import check_criterion
from prune.remove.score import criterion as method_of

RATIOS = (0.25, 0.5, 0.75)
WHOLE = ("layers", *HALVES)  # kinds of which a layer has one
HELD = 2 * 2**30  # bytes of hidden states that one walk may carry; more variants take more walks


@dataclass(frozen=True)
class Point:
    """One group with some of its units removed, and the KL divergence from the whole model, nats per position."""

    group: str
    kind: str
    layer: int
    removed: int
    units: int
    divergence: float


@dataclass
class _Variant:
    """The model with one group smaller: how its layer is masked, and its hidden states by batch."""

    group: str
    kind: str
    layer: int
    removed: int
    units: int
    states: list[Tensor]


def sensitivity(
    model: Model,
    batches: Sequence[Batch],
    *,
    what: Sequence[str] | None = None,
    ratios: Sequence[float] = RATIOS,
    criterion: str = "wanda",
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> list[Point]:
    """Mask `ratios` of the lowest-scored units of one group after the other, all else whole; nothing is mended.

    `what` are kinds of groups (default: all that lie in layers). Layers, attentions and MLPs are left out one by one,
    each a point with one unit removed. `criterion` is one that scores in a walk: wanda, flap, obs, magnitude; kinds
    that it does not score (experts) are scored by magnitude. Weights are read once where the variants' hidden states
    fit into 2 GiB. Raises PruneError for a kind the model lacks.
    """
    found = [kind for kind in kinds(model) if kind != "width"] if what is None else list(dict.fromkeys(what))
    _check(model, found, ratios, criterion)
    inside = groups(model, [kind for kind in found if kind not in WHOLE])
    for group in inside:
        check_criterion([group], _able(group.kind, criterion), {})
    whole = groups(model, [kind for kind in found if kind in WHOLE])
    points: list[Point] = []
    place: dict[str, Any] = {"device": device, "dtype": dtype, "progress": progress}
    for layers in _shares(model, batches, inside, len(ratios), len(whole)):
        points += _walked(model, batches, inside, whole, layers, ratios, criterion, place)
    order = {kind: number for number, kind in enumerate(found)}
    return sorted(points, key=lambda point: (order[point.kind], point.layer, point.removed))


def _check(model: Model, what: Sequence[str], ratios: Sequence[float], criterion: str) -> None:
    if model.family.encoder:
        raise PruneError(f"sensitivity walks one stack of layers; {model.family.model_type} has two", where="model")
    if "width" in what:
        raise PruneError(
            "the width belongs to no layer; choices: " + ", ".join(k for k in kinds(model) if k != "width")
        )
    if not ratios or not all(0 < ratio < 1 for ratio in ratios):
        raise PruneError(f"ratios are fractions removed, above 0 and below 1, not {list(ratios)}", where="ratios")
    if not hasattr(method_of(criterion), "score"):
        raise PruneError(
            f"criterion {criterion!r} makes a walk of its own; choices: wanda, flap, obs, magnitude, random"
        )


def _shares(
    model: Model, batches: Sequence[Batch], inside: Sequence[Group], ratios: int, whole: int
) -> Iterator[range]:
    """Layers whose variants go through one walk together."""
    count = model.numbers["layers"]
    tokens = sum(next(iter(batch.values())).shape[:2].numel() for batch in batches)
    each = 4 * tokens * model.numbers["width"]
    most = max(sum(group.layer == layer for group in inside) * ratios + whole for layer in range(count))
    step = max(HELD // max(each * most, 1), 1)
    for start in range(0, count, step):
        yield range(start, min(start + step, count))


def _walked(
    model: Model,
    batches: Sequence[Batch],
    inside: Sequence[Group],
    whole: Sequence[Group],
    layers: range,
    ratios: Sequence[float],
    criterion: str,
    place: dict[str, Any],
) -> list[Point]:
    variants: list[_Variant] = []
    points: list[Point] = []
    for visit in walk(model, batches, head=True, **place):
        if visit.index == model.numbers["layers"]:
            expected = visit.run()
            for own in variants:
                lost = _lost(visit, own.states, expected)
                points.append(Point(own.group, own.kind, own.layer, own.removed, own.units, lost))
            continue
        for own in variants:
            own.states = [visit.call(b, state) for b, state in enumerate(own.states)]
        if visit.index in layers:
            variants += _in_groups(model, visit, [g for g in inside if g.layer == visit.index], ratios, criterion)
            variants += _without(model, visit, whole)
    return points


def _in_groups(
    model: Model, visit: Visit, here: Sequence[Group], ratios: Sequence[float], criterion: str
) -> Iterator[_Variant]:
    """The variants of a layer's own groups, scored from the layer's own inputs."""
    needs, root = method_of(criterion).NEEDS, model.layer(visit.index)
    consumers = {piece.name: piece for group in here for piece in group.consumers}
    statistics = gather(visit, root, consumers.values(), needs) if needs and consumers else {}
    weights = dict(visit.module.named_parameters(prefix=root))
    for group in here:
        method = method_of(_able(group.kind, criterion))
        scores = method.score(group, weights.__getitem__, statistics)
        for kept in _counts(group, scores, ratios):
            masks = masked_inputs(model, {group.name: kept})
            states = _through(visit, zeroing(visit, model, masks))
            yield _Variant(group.name, group.kind, visit.index, group.units - len(kept), group.units, states)


def _able(kind: str, criterion: str) -> str:
    """The criterion, or magnitude where it does not score a kind."""
    return criterion if kind in method_of(criterion).KINDS else "magnitude"


def _counts(group: Group, scores: Tensor, ratios: Sequence[float]) -> list[list[int]]:
    """What stays at each ratio; ratios that come to the same count, or to all, are one or none."""
    found = {len(kept): kept for kept in (lowest_removed(group, scores, ratio) for ratio in ratios)}
    return [kept for count, kept in found.items() if count < group.units]


def _without(model: Model, visit: Visit, whole: Sequence[Group]) -> Iterator[_Variant]:
    """The variants without the layer, its attention or its MLP."""
    for group in (group for group in whole if visit.index in group.places):
        if group.kind == "layers":
            states = [state.clone() for state in visit.inputs]
        else:
            states = _through(visit, left_out(visit.module, [model.family.sublayers[group.kind]]))
        yield _Variant(f"{group.kind}.{visit.index}", group.kind, visit.index, 1, 1, states)


def _through(visit: Visit, masked: AbstractContextManager[None] | None = None) -> list[Tensor]:
    with masked or nullcontext():
        return [visit.forward(b) for b in range(len(visit.batches))]


def _lost(visit: Visit, states: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """KL divergence of what a variant's states become at the head, nats per position that is text."""
    total, positions = 0.0, 0
    for b, state in enumerate(states):
        added, count = kl(expected[b], visit.call(b, state), visit.mask(b))
        total, positions = total + added, positions + count
    return total / max(positions, 1)
