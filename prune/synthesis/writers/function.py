"""A Python function from a prompt to a text, as a writer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence, Set

from prune.errors import PruneError
from prune.synthesis.writers.writer import Replies, Reply, Request, Writer, estimated_tokens


def function(call: Callable[[str], str]) -> Writer:
    """Calls `call(prompt)` once per request, in order.

    It is known by its name: a run that goes on after the function was mended keeps what it had answered. A finished
    result is told by the function's text, where there is one, too.
    """
    name = getattr(call, "__name__", type(call).__name__)

    def answer(requests: Sequence[Request], wanted: Set[int]) -> Replies:
        for position in sorted(wanted):
            prompt = requests[position].prompt
            text = call(prompt)
            if not isinstance(text, str):
                raise PruneError(f"must give text, not {text!r:.60}", where=f"writer {name}")
            yield position, Reply(text, estimated_tokens(prompt), estimated_tokens(text))

    return Writer(name, ["function", name], answer, source=_text(call))


def _text(call: Callable[[str], str]) -> str | None:
    try:
        return inspect.getsource(call)
    except (OSError, TypeError):  # typed in, or an object that is called
        return None
