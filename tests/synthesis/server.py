"""An OpenAI-compatible server in a process of its own: so slow, and so bad, as it is told to be.

Run as `python server.py LATENCY BAD`: every BAD-th request fails, stalls, hangs up, is turned away with Retry-After, or
is answered with garbage, in turn (0: none). It prints its port, and tells at /stats what it was asked.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

STALL = 30.0  # seconds: longer than any client here waits
FAULTS = ("fail", "stall", "garbage", "hang up", "empty", "turn away", "no text")
WORDS = "amber basin cedar delta ember fjord grove heron islet jetty knoll lagoon marsh nadir ocean prairie"


@dataclass
class State:
    latency: float
    bad: int
    count: int = 0
    now: int = 0
    most: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    prompts: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    keys: set[str] = field(default_factory=set)


def reply(prompt: str) -> str:
    """The same words for the same prompt: a verdict, an instruction, or an answer."""
    digest = hashlib.sha256(prompt.encode()).digest()
    said = " ".join(WORDS.split()[byte % 16] + str(byte) for byte in digest)
    if "SAME" in prompt:
        return "MORE 3 5"
    return f"<instruction>{said}</instruction>" if "<instruction>" in prompt else f"It is {said}."


async def answer(state: State, body: bytes, writer: asyncio.StreamWriter) -> None:
    request = json.loads(body)
    prompt = request["messages"][0]["content"]
    name = hashlib.sha256((prompt + str(request.get("seed"))).encode()).hexdigest()
    state.prompts[name] += 1
    state.count += 1
    fault = FAULTS[state.count // state.bad % len(FAULTS)] if state.bad and state.count % state.bad == 0 else None
    if "refuse this" in prompt or "refuse this" in request["model"]:
        return send(writer, 400, {"error": {"message": "not allowed"}})
    if "wordless" in prompt:  # all of it was thought, or it is withheld
        end = "length" if "thought" in prompt else "content_filter"
        message = {"role": "assistant", "content": None}
        return send(writer, 200, {"choices": [{"message": message, "finish_reason": end}]})
    if fault:
        state.faults[fault] += 1
    if fault == "stall":
        await asyncio.sleep(STALL)
    await asyncio.sleep(state.latency)
    if fault == "fail":
        return send(writer, 500, {"error": {"message": "out of order"}})
    if fault == "turn away":
        return send(writer, 429, {"error": {"message": "too fast"}}, {"Retry-After": "0.05"})
    if fault == "hang up":
        return writer.close()
    if fault == "garbage":
        return send(writer, 200, b"<html>\xff\xfe busy")
    if fault == "empty":
        return send(writer, 200, {"choices": []})
    text = None if fault == "no text" else reply(prompt)
    if text is not None:
        state.answered[name] += 1
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop", "index": 0}
    usage = {"prompt_tokens": len(prompt) // 4, "completion_tokens": len(text or "") // 4}
    return send(writer, 200, {"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage})


def send(writer: asyncio.StreamWriter, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = {"Content-Type": "application/json", "Content-Length": str(len(content)), **(headers or {})}
    head = f"HTTP/1.1 {status} x\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items()) + "\r\n"
    writer.write(head.encode() + content)


async def serve(state: State) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
                body = await reader.readexactly(int(fields.get("content-length", "0")))
                if "/stats" in head.split("\r\n")[0]:
                    send(writer, 200, stats(state))
                    continue
                state.keys.add(fields.get("authorization", ""))
                if "wrong" in fields.get("authorization", ""):
                    send(writer, 401, {"error": {"message": "who are you"}})
                    continue
                state.now += 1
                state.most = max(state.most, state.now)
                try:
                    await answer(state, body, writer)
                finally:
                    state.now -= 1
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


def stats(state: State) -> dict[str, Any]:
    return {
        "count": state.count,
        "most_at_once": state.most,
        "faults": state.faults,
        "different": len(state.prompts),
        "answered": sum(state.answered.values()),
        "answered_twice": sum(count > 1 for count in state.answered.values()),
        "keys": sorted(state.keys),
    }


@contextmanager
def running(*, latency: float = 0.0, bad: int = 0) -> Iterator[str]:
    """A server for the length of the block; gives its address."""
    process = subprocess.Popen([sys.executable, __file__, str(latency), str(bad)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
    finally:
        process.kill()
        process.wait()


def told(url: str) -> dict[str, Any]:
    """What a server was asked."""
    with urllib.request.urlopen(f"{url}/stats") as response:
        found: dict[str, Any] = json.load(response)
    return found


if __name__ == "__main__":
    asyncio.run(serve(State(float(sys.argv[1]), int(sys.argv[2]))))
