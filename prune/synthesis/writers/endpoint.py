"""Any OpenAI-compatible endpoint, as a writer: so many requests at once, each asked again until it is answered."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any

from prune.errors import PruneError
from prune.synthesis.writers.pace import Pace
from prune.synthesis.writers.writer import Replies, Reply, Request, Writer, estimated_tokens

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds between two tries, doubled each time
FATAL = (401, 403, 404)  # nothing that asking again would mend
REFUSALS = 16  # so many requests refused in a row, with none answered, are a mistake in the settings


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
    send = cache(lambda: _sender(url, os.environ.get(token), timeout))
    pace = Pace(requests=requests_per_minute, tokens=tokens_per_minute)
    asked = {"model": model, **(body or {})}

    def answer(requests: Sequence[Request], wanted: frozenset[int]) -> Replies:
        def one(request: Request) -> Reply | _Refused:
            return _patiently(send(), _payload(request, asked), request, url=url, retries=retries, pace=pace)

        return _concurrently(one, requests, wanted, at_once=at_once, url=url)

    identity = ["endpoint", url, asked]
    return Writer(model, identity, answer, prices)


class _Refused(str):
    """Why the endpoint will not answer one request."""


class _Garbage(Exception):
    """An answer that is none."""


def _concurrently(one: Any, requests: Sequence[Request], wanted: frozenset[int], *, at_once: int, url: str) -> Replies:
    """Replies as they come. After an error nothing new is asked, and what is on its way is still taken."""
    trouble: PruneError | None = None
    refused, answered = 0, False
    with ThreadPoolExecutor(at_once) as pool:
        places = {pool.submit(one, requests[place]): place for place in sorted(wanted)}
        for future in as_completed(places):
            if future.cancelled():
                continue
            try:
                reply = future.result()
            except PruneError as error:
                trouble = trouble or error
            else:
                refused, answered = refused + isinstance(reply, _Refused), answered or isinstance(reply, Reply)
                if isinstance(reply, _Refused):
                    if refused >= REFUSALS and not answered:
                        trouble = trouble or PruneError(f"refuses every request: {reply}", where=url)
                    reply = Reply("", 0, 0)
                yield places[future], reply
            if trouble:
                pool.shutdown(wait=False, cancel_futures=True)
    if trouble:
        raise trouble


def _patiently(
    send: Any, payload: dict[str, Any], request: Request, *, url: str, retries: int, pace: Pace
) -> Reply | _Refused:
    """The answer to one request, however often it has to be asked."""
    import openai

    trouble: Exception | None = None
    for attempt in range(retries + 1):
        pace.wait()
        try:
            reply = _read(send(payload), request)
        except openai.APIStatusError as error:
            trouble = error
            if error.status_code in FATAL:
                raise PruneError(_in_words(error), where=url) from None
            if error.status_code in (400, 413, 422):
                return _Refused(_in_words(error))
            if (wait := _retry_after(error.response.headers)) is not None:
                pace.hold(wait)
                continue
        except (openai.APIConnectionError, _Garbage) as error:  # a time-out is a connection error
            trouble = error
        else:
            pace.spent(reply.prompt_tokens + reply.tokens)
            return reply
        if attempt < retries:
            time.sleep(_backoff(attempt, request.seed))
    said = _in_words(trouble)
    raise PruneError(
        f"did not answer in {retries + 1} tries ({said}); what it answered is kept, so the same command goes on from "
        "there",
        where=url,
    )


def _backoff(attempt: int, seed: int) -> float:
    """Seconds to wait: doubled each time, and spread out so that those who failed together do not return together."""
    return min(FIRST_WAIT * 2**attempt, LONGEST_WAIT) * (0.5 + seed % 1000 / 1000)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the endpoint asks to wait, given as a number or a date."""
    said = headers.get("retry-after")
    if not said:
        return None
    try:
        return max(float(said), 0.0)
    except ValueError:
        pass
    try:
        return max(parsedate_to_datetime(said).timestamp() - time.time(), 0.0)
    except ValueError:
        return None


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
    try:
        import openai
    except ImportError:
        raise PruneError("asking an endpoint needs openai: pip install 'prune-kit[synthesize]'") from None

    client = openai.OpenAI(base_url=url, api_key=key or "none", max_retries=0, timeout=timeout)

    def send(payload: dict[str, Any]) -> bytes:
        first = {key: payload[key] for key in ("model", "messages")}
        rest = {key: value for key, value in payload.items() if key not in first}
        content: bytes = client.chat.completions.with_raw_response.create(**first, extra_body=rest).content
        return content

    return send


def _read(content: bytes, request: Request) -> Reply:
    """The reply in the bytes of an answer; _Garbage for anything else."""
    try:
        answer = json.loads(content)
        choice = answer["choices"][0]
        text = choice["message"]["content"]
        usage = answer.get("usage") or {}
        prompt = usage.get("prompt_tokens", estimated_tokens(request.prompt))
        said = usage.get("completion_tokens", estimated_tokens(text) if isinstance(text, str) else 0)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise _Garbage(f"not a chat completion: {content[:80]!r}") from None
    if not isinstance(text, str) or not isinstance(prompt, int) or not isinstance(said, int):
        raise _Garbage("a completion without text")
    return Reply(text.strip(), prompt, said, truncated=choice.get("finish_reason") == "length")


def _in_words(error: Exception | None) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
