"""What a merge does to each layer: how far the models moved, whether they agree, and how often they pull apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import combinations, combinations_with_replacement
from math import prod
from pathlib import PurePath
from typing import Any

import numpy as np
import torch

from prune.merging.block import Block
from prune.merging.plan import Plan

OTHER = "embeddings, norms and head"


@dataclass
class Sums:
    """Over a tensor, or those of a layer: inner products of the changes, entries, and entries whose signs differ."""

    products: torch.Tensor
    entries: int
    conflicts: int


@dataclass
class Profile:
    """Sums by tensor, gathered while the merge goes over the blocks; changes are from the base, else from the first.

    A tensor may be computed more than once, and by several threads at a time: each gathers sums of its own, which
    count once they are those of the whole tensor.
    """

    layers: dict[str, str]  # tensor -> layer
    order: list[str]
    inputs: dict[str, list[str]]
    entries: dict[str, int]  # of each tensor
    sums: dict[str, Sums] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: Plan) -> Profile:
        family = plan.donor.family
        order = [str(layer) for layer in range(plan.layers)] + [OTHER]
        paths = {}
        encoder = plan.donor.numbers.get("encoder_layers", 0)
        for layer in range(plan.layers):
            path = f"{family.encoder}.{layer}" if layer < encoder else family.layer(layer - encoder)
            paths[path + "."] = str(layer)
        layers = {
            name: next((layer for path, layer in paths.items() if name.startswith(path)), OTHER) for name in plan.jobs
        }
        inputs = {name: [str(given.source.model) for given in place.inputs] for name, place in plan.places.items()}
        return cls(layers, order, inputs, {name: prod(job.shape) for name, job in plan.jobs.items()})

    def watch(self, name: str) -> Callable[[Block], None] | None:
        """What is to see every block of a tensor once, while it is computed; None where that has been done."""
        if name in self.sums:
            return None
        gathered: list[Sums] = []

        def see(block: Block) -> None:
            seen = _sums(block)
            if seen is not None:
                gathered.append(seen)
                if sum(own.entries for own in gathered) == self.entries[name]:
                    self.sums[name] = _together(gathered)

        return see

    def rows(self) -> list[dict[str, Any]]:
        """One row per layer: delta_norm by model, cosine (mean over pairs; None for one), sign_conflicts (a share)."""
        found = []
        for layer in self.order:
            own = self._layer(layer)
            if own is None:
                continue
            norms = own.products.diagonal().clamp(min=0).sqrt()
            found.append(
                {
                    "layer": int(layer) if layer.isdigit() else layer,
                    "delta_norm": dict(zip(self._labels(layer, len(norms)), map(float, norms), strict=True)),
                    "cosine": _cosine(own.products, norms),
                    "sign_conflicts": own.conflicts / own.entries if own.entries else 0.0,
                }
            )
        return found

    def _layer(self, layer: str) -> Sums | None:
        """A layer's sums, its tensors added in one order whichever was read first."""
        parts = [self.sums[name] for name in sorted(self.sums) if self.layers[name] == layer]
        parts = [own for own in parts if own.products.shape == parts[0].products.shape]
        if not parts:
            return None
        return _together(parts)

    def _labels(self, layer: str, count: int) -> list[str]:
        """The ends of the models' names, which tell them apart; those that stand twice are numbered."""
        names = next(given for name, given in self.inputs.items() if self.layers[name] == layer)[-count:]
        ends = [PurePath(name).name for name in names]
        ends = ends if len(set(ends)) == len(set(names)) else names
        return [end if ends.count(end) == 1 else f"{end} ({place})" for place, end in enumerate(ends, 1)]


def _sums(block: Block) -> Sums | None:
    """Those of one block; None where nothing changes."""
    tensors = list(block.tensors)
    rows = block.deltas if block.base is not None else [tensor - tensors[0] for tensor in tensors[1:]]
    if not rows:
        return None
    flat = [row.reshape(-1).float() for row in rows]
    products = torch.zeros(len(flat), len(flat), dtype=torch.float64)
    for i, j in combinations_with_replacement(range(len(flat)), 2):
        products[i, j] = products[j, i] = float(torch.dot(flat[i], flat[j]))
    return Sums(products, len(flat[0]), _conflicts(flat) if len(flat) > 1 else 0)


def _together(parts: Sequence[Sums]) -> Sums:
    products = torch.stack([own.products for own in parts]).sum(dim=0)
    return Sums(products, sum(own.entries for own in parts), sum(own.conflicts for own in parts))


def _conflicts(flat: Sequence[torch.Tensor]) -> int:
    """Entries that some raise and some lower."""
    most, least = (reduce(which, flat).cpu().numpy() for which in (torch.maximum, torch.minimum))
    return int(np.count_nonzero((most > 0) & (least < 0)))


def _cosine(products: torch.Tensor, norms: torch.Tensor) -> float | None:
    pairs = [
        float(products[i, j] / (norms[i] * norms[j]))
        for i, j in combinations(range(len(norms)), 2)
        if norms[i] > 0 and norms[j] > 0
    ]
    return sum(pairs) / len(pairs) if pairs else None


def table(rows: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """The rows as a table with a head: layer, one norm per model, cosine, share of sign conflicts."""
    models = list(dict.fromkeys(name for row in rows for name in row["delta_norm"]))
    head = ["layer", *(f"delta norm {name}" for name in models), "cosine", "sign conflicts"]
    body = [
        [row["layer"], *(row["delta_norm"].get(name) for name in models), row["cosine"], row["sign_conflicts"]]
        for row in rows
    ]
    return [head, *body]
