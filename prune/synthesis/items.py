"""An instruction on its way: where it came from, what it asks, and what was found of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

RULES = ("cut", "leaked", "meaningless", "similar", "same", "pleads", "copied")  # in the order in which they are asked


@dataclass(frozen=True)
class Item:
    """One instruction, with its answer once there is one.

    `seed` is the row of the seeds it comes from, `parent` the item it was made of, `operations` the way there.
    `ratings` are the judge's, of the parent's difficulty and its own, 1 to 10. `truncated` when the answer stops where
    its tokens ran out.
    """

    id: str
    seed: str
    skill: str
    difficulty: str
    instruction: str = ""
    answer: str = ""
    language: str = ""
    round: int = 0
    operations: tuple[str, ...] = ()
    parent: str | None = None
    topic: str | None = None
    kind: str | None = None
    format: str | None = None
    verdicts: dict[str, str] = field(default_factory=dict)
    ratings: tuple[int, int] | None = None
    truncated: bool = False

    def found(self, rule: str, verdict: str) -> Item:
        """The item with what a rule said of it."""
        return replace(self, verdicts={**self.verdicts, rule: verdict})


@dataclass(frozen=True)
class Attempt:
    """What became of an item. `rejected` is the rule that eliminated it and why; None where it was kept."""

    item: Item
    rejected: tuple[str, str] | None = None


def stored(item: Item) -> dict[str, Any]:
    """An item as JSON."""
    return asdict(item)


def restored(values: dict[str, Any]) -> Item:
    """The item that `stored` gave."""
    ratings = values["ratings"]
    return Item(
        **values | {"operations": tuple(values["operations"]), "ratings": tuple(ratings) if ratings else None},
    )


def chat(item: Item, writer: str) -> dict[str, Any]:
    """An item in the chat format, with its lineage. The keys are the same for every item."""
    return {
        "id": item.id,
        "messages": [
            {"role": "user", "content": item.instruction},
            {"role": "assistant", "content": item.answer},
        ],
        "skill": item.skill,
        "difficulty": item.difficulty,
        "topic": item.topic,
        "kind": item.kind,
        "format": item.format,
        "language": item.language,
        "lineage": {
            "seed": item.seed,
            "parent": item.parent,
            "round": item.round,
            "operations": list(item.operations),
            "writer": writer,
            "verdicts": {rule: item.verdicts.get(rule) for rule in RULES},
            "ratings": list(item.ratings) if item.ratings else None,
            "truncated": item.truncated,
        },
    }
