"""Any OpenAI-compatible endpoint, as a writer: so many requests at once, each asked again until it is answered."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, partial
from queue import SimpleQueue
from typing import Any

from prune.errors import PruneError, need
from prune.synthesis.writers.pace import Pace
from prune.synthesis.writers.patience import Garbage, Patience, Refused, patiently
from prune.synthesis.writers.writer import Replies, Reply, Request, Writer, estimated_tokens

Answer = Future[Reply | Refused | None]
REFUSALS = 16  # so many requests refused in a row, with none answered, are a mistake in the settings
NO_KEY = "none"  # many a local endpoint asks for none
SILENT = (
    "length",
    "content_filter",
)  # where these end a completion it may have no text: it was all thought, or is withheld


def endpoint(
    url: str,
    model: str,
    *,
    at_once: int = 16,
    retries: int = 8,
    timeout: float = 120.0,
    requests_per_minute: float | None = None,
    tokens_per_minute: float | None = None,
    token: str = "OPENAI_API_KEY",
    body: Mapping[str, Any] | None = None,
    prices: tuple[float, float] = (0.0, 0.0),
) -> Writer:
    """A writer that asks `url` (as in http://localhost:8000/v1) for chat completions, `at_once` at a time.

    What fails, stalls for `timeout` seconds or answers garbage is asked again up to `retries` times, later each time,
    and not before its Retry-After. A request that the endpoint refuses for what it says (400, 413, 422) is answered
    with nothing. `token` names the environment variable that holds the key. `body` is merged into each request; null
    takes a key out. PruneError when it is still not answered, or may not be; what is answered is kept.
    """
    made = cache(lambda: _sender(url, os.environ.get(token), timeout))
    answered = threading.Event()
    pace = Pace(requests=requests_per_minute, tokens=tokens_per_minute)
    asked = {"model": model, **(body or {})}

    def answer(requests: Sequence[Request], wanted: Set[int]) -> Replies:
        hint = "" if os.environ.get(token) else f"{token} is not set"
        send, patience = made(), Patience(url, retries, pace, hint=hint)

        def one(request: Request) -> Reply | Refused | None:
            return patiently(lambda: _read(send(_payload(request, asked)), request), patience, seed=request.seed)

        return _concurrently(one, requests, wanted, patience, answered, at_once=at_once)

    return Writer(model, ["endpoint", url, asked], answer, prices, grows=True)


def _concurrently(
    one: Callable[[Request], Reply | Refused | None],
    requests: Sequence[Request],
    wanted: Set[int],
    patience: Patience,
    answered: threading.Event,
    *,
    at_once: int,
) -> Replies:
    """Replies as they come, also to what is added meanwhile.

    After an error nothing new is asked, and what is on its way is still taken. `answered` is set once something is.
    """
    trouble: PruneError | None = None
    refused = 0
    done: SimpleQueue[tuple[int, Answer]] = SimpleQueue()
    asked: set[int] = set()
    taken = 0
    with ThreadPoolExecutor(at_once) as pool:
        try:
            while True:
                for place in sorted(wanted - asked):
                    asked.add(place)
                    future = pool.submit(one, requests[place])
                    future.add_done_callback(partial(_told, done, place))
                if taken == len(asked):
                    break
                place, future = done.get()
                taken += 1
                try:
                    reply = future.result()
                except PruneError as error:
                    trouble = trouble or error
                    patience.stop.set()
                    continue
                if isinstance(reply, Reply):
                    answered.set()
                    yield place, reply
                elif reply is not None:
                    refused += 1
                    if refused >= REFUSALS and not answered.is_set():
                        trouble = trouble or PruneError(f"refuses every request: {reply}", where=patience.where)
                        patience.stop.set()
                    yield place, Reply("", 0, 0, refused=True)
        finally:
            patience.stop.set()  # also where nobody wants the rest
    if trouble:
        raise trouble


def _told(done: SimpleQueue[tuple[int, Answer]], place: int, answer: Answer) -> None:
    done.put((place, answer))


def _payload(request: Request, asked: dict[str, Any]) -> dict[str, Any]:
    own = {
        "messages": [{"role": "user", "content": request.prompt}],
        "max_tokens": request.tokens,
        "temperature": request.temperature,
        "seed": request.seed,
    }
    return {key: value for key, value in {**own, **asked}.items() if value is not None}


def _sender(url: str, key: str | None, timeout: float) -> Any:
    """A function that posts one request and gives the raw bytes of the answer."""
    need("openai", "synthesize", what="asking an endpoint", where="writer")
    import openai

    client = openai.OpenAI(base_url=url, api_key=key or NO_KEY, max_retries=0, timeout=timeout)

    def send(payload: dict[str, Any]) -> bytes:
        # Bytes, because what is no completion must be told from one; that this spares half of the client's time, too.
        return client.post("/chat/completions", cast_to=bytes, body=payload)

    return send


def _read(content: bytes, request: Request) -> Reply:
    """The reply in the bytes of an answer; Garbage for anything else."""
    try:
        answer = json.loads(content)
        choice = answer["choices"][0]
        text, end = choice["message"]["content"], choice.get("finish_reason")
        if text is None and end in SILENT:
            text = ""
        usage = answer.get("usage") or {}
        prompt = usage.get("prompt_tokens", estimated_tokens(request.prompt))
        said = usage.get("completion_tokens", estimated_tokens(text) if isinstance(text, str) else 0)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise Garbage(f"not a chat completion: {content[:80]!r}") from None
    if not isinstance(text, str) or not isinstance(prompt, int) or not isinstance(said, int):
        raise Garbage("a completion without text")
    return Reply(text.strip(), prompt, said, truncated=end == "length")
