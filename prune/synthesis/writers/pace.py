"""How fast an endpoint may be asked: so many requests and tokens a minute, and not before it says."""

from __future__ import annotations

import threading
import time
from collections import deque

MINUTE = 60.0  # seconds


class Pace:
    """Shared by the threads that ask one endpoint."""

    def __init__(self, *, requests: float | None = None, tokens: float | None = None):
        self.apart = MINUTE / requests if requests else 0.0
        self.tokens = tokens
        self._lock = threading.Lock()
        self._next = 0.0
        self._spent: deque[tuple[float, int]] = deque()

    def wait(self, stop: threading.Event) -> None:
        """Returns when the next request may go out, or once nothing is to go out any more."""
        if stop.is_set():
            return
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next, self._paid(now))
            self._next = start + self.apart
        if start > now:
            stop.wait(start - now)

    def hold(self, seconds: float) -> None:
        """Nothing goes out for so long."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)

    def spent(self, tokens: int) -> None:
        """Counts what a reply took."""
        if self.tokens:
            with self._lock:
                self._spent.append((time.monotonic(), tokens))

    def _paid(self, now: float) -> float:
        """When the tokens of the last minute are few enough again."""
        if not self.tokens:
            return now
        while self._spent and self._spent[0][0] <= now - MINUTE:
            self._spent.popleft()
        over = sum(count for _, count in self._spent) - self.tokens
        free = now
        for when, count in self._spent:
            if over < 0:
                break
            over, free = over - count, when + MINUTE
        return free
