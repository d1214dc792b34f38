"""What a model costs, by the words a budget uses: params, bytes, FLOPs, and seconds on the device at hand.

Seconds come from a table: a layer is timed with fewer of one kind of unit at a time, and what lies between is
interpolated. Kinds inside a layer add up what they save; the width scales the whole.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prune.measure import layer_flops
from prune.model.family import blocks
from prune.model.groups import Group
from prune.model.model import Model
from prune.model.walk import walk
from prune.remove.choose import structural
from prune.remove.cut import cut

CONTEXT = 1024  # tokens at which attention's FLOPs are counted
TOKENS = 128  # of the prompt that is timed
POINTS = 5  # sizes of each kind that are timed
REPEATS = 15  # passes, sizes alternating; the median counts
Cost = Callable[[Model], float]
LINEAR = ("params", "bytes", "flops")  # costs to which each unit adds as much


def _flops(model: Model) -> float:
    layers = sum(sum(layer_flops(model, layer, CONTEXT)) for layer in range(model.numbers["layers"]))
    return layers + 2.0 * getattr(model.config, "vocab_size", 0) * model.numbers["width"]


COSTS: dict[str, Cost] = {
    "params": lambda model: float(model.tensors.parameters),
    "bytes": lambda model: float(model.tensors.bytes),
    "flops": _flops,
}


@dataclass(frozen=True)
class Timed:
    """Seconds of one layer by kind and count, [[units, seconds], ...] ascending, and of what lies around the layers."""

    device: str
    dtype: str
    tokens: int
    layer: dict[str, list[list[float]]]
    outside: float

    def seconds(self, model: Model) -> float:
        """Seconds of one pass over the table's prompt."""
        scale = 1.0
        whole = next(iter(self.layer.values()))[-1][1]
        if "width" in self.layer:
            scale = _between(self.layer["width"], model.numbers["width"]) / whole
        total = 0.0
        for layer in range(model.numbers["layers"]):
            sizes = model.sizes(layer)
            saved = sum(
                points[-1][1] - _between(points, blocks(kind, sizes)[0])
                for kind, points in self.layer.items()
                if kind != "width"
            )
            total += max(whole - saved, 0.0)
        return scale * (total + self.outside)


def _between(points: Sequence[Sequence[float]], units: float) -> float:
    return float(np.interp(units, [p[0] for p in points], [p[1] for p in points]))


def timed(model: Model, groups: Sequence[Group], *, kept: Path | None = None, **place: Any) -> Timed:
    """The table for the kinds of `groups`; read from the file `kept` when it is there, and written to it.

    Every layer is taken to be as fast as the first that has the kind. `place` are device and dtype of the walk.
    """
    if kept is not None and kept.is_file():
        return Timed(**json.loads(kept.read_text(encoding="utf-8")))
    first = {kind: next(g for g in groups if g.kind == kind) for kind in dict.fromkeys(g.kind for g in groups)}
    layer = {kind: _points(model, group, **place) for kind, group in first.items()}
    widest = max(points[-1][1] for points in layer.values())
    layer = {
        kind: [[units, seconds * widest / points[-1][1]] for units, seconds in points] for kind, points in layer.items()
    }
    device = str(place.get("device", "cpu"))
    found = Timed(_named(device), str(place.get("dtype")), TOKENS, layer, _outside(model, **place))
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(asdict(found)), encoding="utf-8")
    return found


def _named(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def _points(model: Model, group: Group, **place: Any) -> list[list[float]]:
    """Seconds of a layer with fewer units of a group, never less for more units."""
    parts = len(group.partitions)
    allowed = structural(group)
    steps = np.unique(np.linspace(0, len(allowed) - 1, POINTS).round().astype(int))
    counts = [allowed[step] for step in steps]
    layer = group.layer or 0
    plans = [{group.name: sorted(u for part in group.partitions for u in part[: n // parts])} for n in counts]
    visits = [_at(cut(model, plan), layer, **place) for plan in plans]
    taken: list[list[float]] = [[] for _ in counts]
    for turn in range(REPEATS + 1):
        for own, run in zip(taken, visits, strict=True):
            seconds = _clocked(run, str(place.get("device", "cpu")))
            if turn:
                own.append(seconds)
    middle = np.maximum.accumulate([statistics.median(own) for own in taken])
    return [[float(n), float(seconds)] for n, seconds in zip(counts, middle, strict=True)]


def _at(model: Model, layer: int, **place: Any) -> Callable[[], object]:
    """A pass of the prompt through one layer of a model, which stays filled."""
    for visit in walk(model, [_prompt(model)], device=place.get("device", "cpu"), dtype=place.get("dtype")):
        if visit.index == layer:
            return lambda: visit.forward(0)
    raise AssertionError(layer)


def _outside(model: Model, **place: Any) -> float:
    """Seconds of the embedding, the final norm and the head."""
    batch = _prompt(model)
    for visit in walk(model, [batch], head=True, device=place.get("device", "cpu"), dtype=place.get("dtype")):
        if visit.index == model.numbers["layers"]:
            device = str(place.get("device", "cpu"))
            return statistics.median(_clocked(lambda: visit.forward(0), device) for _ in range(REPEATS))  # noqa: B023
    raise AssertionError("a walk with its head ends there")


def _prompt(model: Model) -> dict[str, torch.Tensor]:
    longest = getattr(model.config, "max_position_embeddings", None) or TOKENS
    ids = torch.arange(min(TOKENS, longest)) % max(int(getattr(model.config, "vocab_size", 2)), 1)
    return {"input_ids": ids[None]}


def _clocked(run: Callable[[], object], device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def known(
    names: Mapping[str, float], model: Model, groups: Sequence[Group], **options: Any
) -> tuple[dict[str, Cost], Timed | None]:
    """The costs that a budget names, and the table when seconds are among them."""
    if "latency" not in names:
        return COSTS, None
    table = timed(model, groups, **options)
    return {**COSTS, "latency": table.seconds}, table
