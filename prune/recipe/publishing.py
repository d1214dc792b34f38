"""What a finished output is sent to, once: what was sent is noted in timings.json, the one file that has no hash."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prune import files
from prune.progress import Progress


def wanted(steps: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The places that steps ask for, in their order."""
    for step in steps:
        if found := step["record"].get("publish"):
            yield found


def refuse(expected: list[dict[str, Any]]) -> None:
    """PruneError when something will be sent and there is no token: better now than at the end."""
    if any(wanted(expected)):
        from prune.exports.hub import token

        token()


def send(output: Path, steps: list[dict[str, Any]], publish: Callable[..., dict[str, str]], progress: Progress) -> None:
    """Sends an output to each place it has not been sent to yet."""
    for place in wanted(steps):
        timings = files.read_json(output / files.TIMINGS)
        done = timings.get("published", [])
        if any(one["place"] == place for one in done):
            continue
        with progress.track(f"sending to {place['repo']}"):
            commit = publish(output, **place)
        files.write_json(output / files.TIMINGS, timings | {"published": [*done, {"place": place, **commit}]})
        progress.say(f"sent: {commit['url']}")
