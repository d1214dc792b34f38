"""What a writer is: something that answers prompts, some at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Request:
    """One prompt: at most `tokens` new ones; `temperature` 0 takes the likeliest. `seed` makes what is drawn repeat."""

    prompt: str
    tokens: int
    temperature: float
    seed: int


@dataclass(frozen=True)
class Reply:
    """What was said, and what it took. `truncated` when it was still speaking as its tokens ran out.

    `refused` when nothing was said because the writer will not answer this.
    """

    text: str
    prompt_tokens: int
    tokens: int
    truncated: bool = False
    refused: bool = False


Replies = Iterator[tuple[int, Reply]]


@dataclass(frozen=True)
class Writer:
    """`answer(requests, wanted)` gives (position, reply) for each wanted position, in any order, as they come.

    It is given all requests so that what is computed together does not depend on which are answered already. Of a
    writer that `grows`, both may get longer whenever it has given a reply, and it answers what was added as well.
    `identity` is what another writer of the same name would differ in; the same request to the same identity is asked
    once. `prices` are money per million tokens, of prompts and of replies. `source` tells a whole result from that of
    another writer of this identity, whose answers may still be used by a run that goes on.
    """

    name: str
    identity: Any
    answer: Callable[[Sequence[Request], Set[int]], Replies]
    prices: tuple[float, float] = (0.0, 0.0)
    source: str | None = None
    grows: bool = False

    def money(self, prompt_tokens: int, tokens: int) -> float:
        """What so many tokens of prompts and of replies cost."""
        prompt, said = self.prices
        return (prompt * prompt_tokens + said * tokens) / 1e6


def estimated_tokens(text: str) -> int:
    """About how many tokens a text has where nobody says: three bytes each, which is rather too many."""
    return len(text.encode("utf-8", "replace")) // 3 + 1
