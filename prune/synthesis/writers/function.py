"""A Python function from a prompt to a text, as a writer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prune.errors import PruneError
from prune.synthesis.writers.writer import Replies, Reply, Request, Writer, estimated_tokens


def function(call: Callable[[str], str]) -> Writer:
    """Calls `call(prompt)` once per request, in order."""
    name = getattr(call, "__name__", type(call).__name__)

    def answer(requests: Sequence[Request], wanted: frozenset[int]) -> Replies:
        for position in sorted(wanted):
            prompt = requests[position].prompt
            text = call(prompt)
            if not isinstance(text, str):
                raise PruneError(f"must give text, not {text!r:.60}", where=f"writer {name}")
            yield position, Reply(text, estimated_tokens(prompt), estimated_tokens(text))

    return Writer(name, ["function", name], answer)
