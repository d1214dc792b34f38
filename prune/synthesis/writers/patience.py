"""Asking again: later each time, not before an endpoint says, and not at all what it will never answer."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime

from prune.errors import PruneError
from prune.synthesis.writers.pace import Pace
from prune.synthesis.writers.writer import Reply

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds between two tries, doubled each time
LONGEST_HOLD = 3600.0  # seconds that an endpoint may ask to wait
UNKNOWN = (401, 403)  # nobody it would let in
FATAL = (*UNKNOWN, 404)  # nothing that asking again would mend
REFUSING = (400, 413, 422)  # the endpoint will not answer this one


class Garbage(Exception):
    """An answer that is none."""


class Refused(str):
    """Why an endpoint will not answer one request."""


@dataclass(frozen=True)
class Patience:
    """How often and how fast an endpoint, `where`, is asked. Once `stop` is set nobody is waited for any more.

    `hint` is what may be why it lets nobody in.
    """

    where: str
    retries: int
    pace: Pace
    stop: threading.Event = field(default_factory=threading.Event)
    hint: str = ""


def patiently(ask: Callable[[], Reply], patience: Patience, *, seed: int) -> Reply | Refused | None:
    """What `ask` gives, however often it has to be called; None once it is to stop.

    PruneError where asking again would not mend it, or has not.
    """
    import openai

    trouble: Exception | None = None
    for attempt in range(patience.retries + 1):
        patience.pace.wait(patience.stop)
        if patience.stop.is_set():
            return None
        try:
            reply = ask()
        except openai.APIStatusError as error:
            trouble = error
            if error.status_code in FATAL:
                hint = patience.hint if error.status_code in UNKNOWN else ""
                raise PruneError("; ".join(filter(None, [in_words(error), hint])), where=patience.where) from None
            if error.status_code in REFUSING:
                return Refused(in_words(error))
            if (wait := retry_after(error.response.headers)) is not None:
                patience.pace.hold(wait)
                continue
        except (openai.APIConnectionError, Garbage) as error:  # a time-out is a connection error
            trouble = error
        else:
            patience.pace.spent(reply.prompt_tokens + reply.tokens)
            return reply
        if attempt < patience.retries:
            patience.stop.wait(backoff(attempt, seed))
    said = f"did not answer in {patience.retries + 1} tries ({in_words(trouble)})"
    raise PruneError(f"{said}; what it answered is kept, so the same command goes on from there", where=patience.where)


def backoff(attempt: int, seed: int) -> float:
    """Seconds to wait: doubled each time, and spread out so that those who failed together do not return together."""
    return min(FIRST_WAIT * 2**attempt, LONGEST_WAIT) * (0.5 + seed % 1000 / 1000)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that an endpoint asks to wait, given as a number or a date; None where it does not."""
    said = headers.get("retry-after")
    if not said:
        return None
    try:
        seconds = _seconds(said)
    except ValueError:
        return None
    return min(max(seconds, 0.0), LONGEST_HOLD) if math.isfinite(seconds) else None


def _seconds(said: str) -> float:
    try:
        return float(said)
    except ValueError:
        return parsedate_to_datetime(said).timestamp() - time.time()


def in_words(error: Exception | None) -> str:
    """An error in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
