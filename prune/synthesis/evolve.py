"""Evolution: which operation an instruction gets, and what a prompt becomes once it is answered."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from prune.synthesis.items import Item
from prune.synthesis.languages import Language, fill, tag
from prune.synthesis.settings import BREADTH


@dataclass(frozen=True)
class Draft:
    """An item to be: its instruction is there, or a prompt asks for it. `parent` is what it is evolved from."""

    item: Item
    language: Language
    parent: Item | None = None
    template: str = ""
    prompt: str | None = None


def evolve(
    parent: Item,
    *,
    round: int,
    slot: int,
    weights: Mapping[str, float],
    seed: int,
    language: Language,
    harder: Mapping[str, str],
) -> Draft:
    """The draft of what `parent` becomes in a round: an operation drawn by its weight, and its prompt.

    `harder` is the difficulty a step above each; the top stays, and so does what has no known place.
    """
    operation = draw(weights, seed, "operation", round, slot)
    difficulty = parent.difficulty if operation == BREADTH else harder.get(parent.difficulty, parent.difficulty)
    item = replace(
        parent,
        id=f"{round}-{slot}",
        instruction="",
        answer="",
        language=language.name,
        round=round,
        parent=parent.id,
        operations=(*parent.operations, operation),
        difficulty=difficulty,
        verdicts={},
        ratings=None,
        truncated=False,
    )
    if operation == BREADTH:  # about something else, asked for in another way
        item = replace(item, topic=None, kind=None, format=None)
    template = language.prompts[operation]
    return Draft(item, language, parent, template, fill(template, instruction=parent.instruction))


def draw(weights: Mapping[str, float], *key: object) -> str:
    """One of the names, by its weight; the same for the same key."""
    return random.Random(number(*key)).choices(list(weights), list(weights.values()))[0]


def number(*key: object) -> int:
    """A number of 31 bits that a key always gives: endpoints take no larger seeds."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:4], "big") >> 1


def written(reply: str, template: str) -> str:
    """The instruction in a reply: what stands between the template's tags, or all of it where there are none."""
    name = tag(template)
    found = re.search(rf"<{name}>(.*?)(?:</{name}>|\Z)", reply, re.DOTALL)
    found = found or re.search(rf"\A(.*?)</{name}>", reply, re.DOTALL)
    text = (found[1] if found else reply).strip()
    quoted = re.fullmatch(r'["“「](.*)["”」]', text, re.DOTALL)
    return quoted[1].strip() if quoted and not re.search(r'["“”「」]', quoted[1]) else text
