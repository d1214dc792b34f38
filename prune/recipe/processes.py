"""Several processes for the steps that use them: the first runs the recipe, the others wait until it calls.

They are started by `accelerate launch -m prune apply ...`, and then live as long as the run; or by the run itself
(`prune apply --processes 8`), for each such step anew. Either way they hear of a step through torch's own store, as
JSON: which recipe, which step of it, and the folder of the model it starts from. They must see the same disk.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from prune.errors import PruneError

RANK, SIZE, LOCAL_SIZE = "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"
ATTEMPT = "TORCHELASTIC_RESTART_COUNT"  # sets the keys of one group of processes apart from those of the next
NAMES = (RANK, SIZE, "LOCAL_RANK", LOCAL_SIZE, "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE")
LOOK = timedelta(seconds=60)
GOODBYE = 30.0  # seconds that a process has to end by itself
END = {"end": True}


def rank() -> int:
    """This process's number among those started together; 0 when it was started alone."""
    return int(os.environ.get(RANK, 0)) if size() > 1 else 0


def size() -> int:
    """How many were started together."""
    return int(os.environ.get(SIZE, 1))


def taking_part(processes: int) -> tuple[int, int]:
    """How many a step that uses several will have, and how many of them are on this machine.

    `processes` are those that the run itself starts.
    """
    if size() == 1:
        return processes, processes
    return size(), int(os.environ.get(LOCAL_SIZE, size()))


@dataclass
class Others:
    """What the first process knows of the others: how many to start for a step, or the call of those that wait."""

    count: int
    environment: dict[str, str] = field(default_factory=dict)
    calls: int = 0

    @contextmanager
    def called(self, message: dict[str, Any]) -> Iterator[None]:
        """The others take part in a step while the block runs."""
        if self.environment:
            with _as(self.environment, self.calls):
                _tell(_store(), self.calls, message)
                self.calls += 1
                yield
        elif self.count > 1:
            with _started(self.count) as store:
                _tell(store, 0, message)
                yield
                _tell(store, 1, END)
        else:
            yield


@contextmanager
def others(processes: int) -> Iterator[Others]:
    """The others of a run; while inside, what runs in this process takes itself to be alone unless it calls them.

    PruneError when processes are both asked for and there already.
    """
    if size() == 1:
        yield Others(processes)
        return
    if processes > 1:
        raise PruneError("processes were started by a launcher already; leave it out", where="--processes")
    known = {name: os.environ.pop(name) for name in NAMES if name in os.environ}
    found = Others(int(known[SIZE]), known)
    try:
        yield found
    finally:
        with _as(known, found.calls):
            _tell(_store(), found.calls, END)
        os.environ.update(known)


def follow(take_part: Callable[[dict[str, Any]], None]) -> None:
    """What every process but the first does: takes part in the steps it is called to, until there are no more.

    A PruneError is the first process's to report.
    """
    for number in range(sys.maxsize):
        message = _hear(number)
        if message == END:
            return
        os.environ[ATTEMPT] = str(number + 1)
        try:
            take_part(message)
        except PruneError:
            continue


def refuse_too_many(processes: int, device: str) -> None:
    """PruneError for more processes than there are GPUs to give them."""
    if device == "cuda" and processes > 1:
        import torch

        if processes > torch.cuda.device_count():
            raise PruneError(f"choices: 1 to {torch.cuda.device_count()}, a GPU each", where="--processes")


@contextmanager
def _started(count: int) -> Iterator[Any]:
    """Other processes on this machine, and the store that they listen to; gone when the block ends."""
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {
        SIZE: str(count),
        LOCAL_SIZE: str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    command = [sys.executable, "-m", "prune.recipe.worker"]
    workers: list[subprocess.Popen] = []
    try:
        for number in range(1, count):
            own = {RANK: str(number), "LOCAL_RANK": str(number)}
            workers.append(subprocess.Popen(command, env={**os.environ, **common, **own}))
        with _as(common | {RANK: "0", "LOCAL_RANK": "0"}, 0):
            yield store
        with suppress(subprocess.TimeoutExpired):
            for worker in workers:
                worker.wait(GOODBYE)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


@contextmanager
def _as(environment: dict[str, str], calls: int) -> Iterator[None]:
    """This process as one of several, for libraries that read so from the environment."""
    before = {name: os.environ.get(name) for name in (*environment, ATTEMPT)}
    os.environ.update(environment | {ATTEMPT: str(calls + 1)})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _store() -> Any:
    """The store that all processes share."""
    from torch.distributed import TCPStore

    # A launcher that keeps no store of its own leaves it to the first process.
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if port not in _STORES:
        mine = not agent and rank() == 0
        _STORES[port] = TCPStore(host, port if agent else port + 1, is_master=mine, wait_for_workers=False)
    return _STORES[port]


_STORES: dict[int, Any] = {}  # port -> the connection, which lives as long as the process


def _tell(store: Any, number: int, message: dict[str, Any]) -> None:
    store.set(f"prune/{number}", json.dumps(message))


def _hear(number: int) -> dict[str, Any]:
    from torch.distributed import DistNetworkError, DistStoreError

    key = f"prune/{number}"
    while True:
        try:
            _store().wait([key], LOOK)
        except DistNetworkError:
            return END  # the first process is gone
        except DistStoreError:
            continue  # nothing was said yet
        found: dict[str, Any] = json.loads(_store().get(key))
        return found
