"""Which units of the original model are left after all cuts: plans, each in the units the one before left, composed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

Shape = Mapping[str, Any]  # what Model.shape gives
Plan = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Kept:
    """One layer of the first model and what is left of it; heads and experts by their first numbers."""

    number: int
    heads: int  # query heads it had
    kv_heads: int
    channels: int  # of the MLP, or of each expert
    experts: int
    queries: tuple[int, ...]  # query heads that stay; each belongs to key-value head q // (heads / kv_heads)
    left_experts: tuple[int, ...] = ()
    left_channels: int = 0
    dropped: bool = False

    @property
    def group(self) -> int:
        """Query heads of one key-value head, as it was."""
        return max(self.heads // max(self.kv_heads, 1), 1)

    @property
    def left_kv_heads(self) -> tuple[int, ...]:
        return tuple(sorted({query // self.group for query in self.queries}))


@dataclass
class Lineage:
    """The layers of the first shape seen, and which of them the plans so far keep."""

    layers: list[Kept] = field(default_factory=list)
    alive: list[int] = field(default_factory=list)  # positions in `layers`, in the order the model now has

    def follow(self, plan: Plan) -> None:
        """One cut."""
        for name, kept in plan.items():
            parts = name.split(".")
            if len(parts) == 3 and parts[1].isdigit() and int(parts[1]) < len(self.alive):
                position = self.alive[int(parts[1])]
                self.layers[position] = _cut(self.layers[position], parts[2], kept)
        for half in ("attention", "mlp"):
            if half in plan:
                self._without(half, set(plan[half]))
        if "layers" in plan:
            gone = [position for number, position in enumerate(self.alive) if number not in set(plan["layers"])]
            for position in gone:
                self.layers[position] = replace(self.layers[position], dropped=True)
            self.alive = [position for position in self.alive if position not in set(gone)]

    def _without(self, half: str, kept: set[int]) -> None:
        """A half's units are those that are there."""
        nothing: dict[str, Any] = {"queries": ()} if half == "attention" else {"left_channels": 0, "left_experts": ()}
        there = [n for n in self.alive if any(getattr(self.layers[n], name) for name in nothing)]
        for number, position in enumerate(there):
            if number not in kept:
                self.layers[position] = replace(self.layers[position], **nothing)

    def agrees(self, shape: Shape) -> bool:
        """Whether the layers now are as the shape says; they are not after a step that is not a cut."""
        if len(shape["heads"]) != len(self.alive):
            return False
        return all(
            len(self.layers[position].queries) == shape["heads"][number]
            and self.layers[position].left_channels == _channels(shape, number)
            and len(self.layers[position].left_experts) == shape["experts"][number]
            for number, position in enumerate(self.alive)
        )


def lineage(records: Sequence[Mapping[str, Any]]) -> list[Kept]:
    """What the steps that recorded `shape` left of the model that the first of them found.

    A step that changed the model otherwise (an up-scaling, say) begins a new first model.
    """
    found = Lineage()
    for record in records:
        before, after = record["shape"]
        if not found.layers or not found.agrees(before):
            found = _begun(before)
        found.follow(record.get("plan", {}))
        if not found.agrees(after):
            found = _begun(after)
    return found.layers


def _begun(shape: Shape) -> Lineage:
    layers = [
        Kept(
            number=number,
            heads=shape["heads"][number],
            kv_heads=shape["kv_heads"][number],
            channels=_channels(shape, number),
            experts=shape["experts"][number],
            queries=tuple(range(shape["heads"][number])),
            left_experts=tuple(range(shape["experts"][number])),
            left_channels=_channels(shape, number),
        )
        for number in range(len(shape["heads"]))
    ]
    return Lineage(layers, list(range(len(layers))))


def _channels(shape: Shape, number: int) -> int:
    return int(shape["expert_channels"][number] if shape["experts"][number] else shape["channels"][number])


def _cut(layer: Kept, kind: str, kept: Sequence[int]) -> Kept:
    if kind == "heads":
        stay = {layer.left_kv_heads[unit] for unit in kept if unit < len(layer.left_kv_heads)}
        return replace(layer, queries=tuple(query for query in layer.queries if query // layer.group in stay))
    if kind == "query_heads":
        return replace(layer, queries=tuple(layer.queries[unit] for unit in kept if unit < len(layer.queries)))
    if kind == "experts":
        left = tuple(layer.left_experts[unit] for unit in kept if unit < len(layer.left_experts))
        return replace(layer, left_experts=left)
    if kind == "channels":
        return replace(layer, left_channels=len(kept) // max(len(layer.left_experts), 1))
    return layer
