"""How far a run is: one bar on a terminal, a plain line now and then elsewhere, and no bar of anyone else's."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TextIO

Advance = Callable[..., None]  # advance() for one unit, advance(n) for n, advance(n, note) to say how it goes
PLAIN_SECONDS = 10.0  # between two plain lines


class Progress:
    """Tells a person what happens, on stderr. `quiet` says nothing; `verbose` also says the details."""

    def __init__(self, *, quiet: bool = False, verbose: bool = False, stream: TextIO | None = None):
        self.quiet = quiet
        self.verbose = verbose
        self.stream = stream or sys.stderr
        self._bar_is_up = False
        self._console = None if quiet or not self.stream.isatty() else _console(self.stream)

    def say(self, message: str) -> None:
        """One line."""
        if self._console:  # above the bar, when there is one
            self._console.print(message, markup=False, highlight=False, soft_wrap=True)
        elif not self.quiet:
            print(message, file=self.stream, flush=True)

    def detail(self, message: str) -> None:
        """One line that only `verbose` asks for."""
        if self.verbose:
            self.say(message)

    @contextmanager
    def track(self, description: str, total: int | None = None) -> Iterator[Advance]:
        """A bar for the length of the block, which gets the function that moves it; a bar inside a bar is silent."""
        if self.quiet or self._bar_is_up:
            yield nothing
            return
        self._bar_is_up = True
        try:
            with self._bar(description, total) if self._console else _lines(self.say, description, total) as advance:
                yield advance
        finally:
            self._bar_is_up = False

    @contextmanager
    def _bar(self, description: str, total: int | None) -> Iterator[Advance]:
        from rich import progress as bars

        columns = (
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TextColumn("{task.fields[note]}"),
            bars.TimeRemainingColumn(),
        )
        with bars.Progress(*columns, console=self._console, transient=True) as bar:
            task = bar.add_task(description, total=total, note="")
            yield lambda count=1, note="": bar.update(task, advance=count, note=note)


def _console(stream: TextIO):  # type: ignore[no-untyped-def]  # rich is slow to import, and only a terminal needs it
    from rich.console import Console

    return Console(file=stream)


def nothing(count: int = 1, note: str = "") -> None:
    """An advance that shows nothing."""


@contextmanager
def _lines(say: Callable[[str], None], description: str, total: int | None) -> Iterator[Advance]:
    """Says how far it is at most every PLAIN_SECONDS, so that a log of a long run stays short."""
    began = spoken = time.monotonic()
    done = first = 0

    def advance(count: int = 1, note: str = "") -> None:
        nonlocal done, first, spoken
        first = first or (done + count if count > 1 else 0)  # what an earlier run had done says nothing of the pace
        done += count
        if time.monotonic() - spoken >= PLAIN_SECONDS:
            spoken = time.monotonic()
            left = (spoken - began) / max(done - first, 1) * (total - done) if total else 0.0
            words = [note, f"{_clock(left)} left" if total and note else ""]
            say(", ".join([f"{description}: {done}" + (f" of {total}" if total else ""), *filter(None, words)]))

    yield advance


def _clock(seconds: float) -> str:
    """A time to come in words: 40 s, 12 min, 3.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def silence_others() -> None:
    """Asks libraries not imported yet for no bars and no chatter, for the whole process: only for the command line."""
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        os.environ.setdefault(name, "error")


@contextmanager
def silenced() -> Iterator[None]:
    """No bars of the libraries that are loaded already, until the block ends."""
    with ExitStack() as stack:
        logging = sys.modules.get("transformers.utils.logging")
        if logging and logging.is_progress_bar_enabled():
            logging.disable_progress_bar()
            stack.callback(logging.enable_progress_bar)
        datasets = sys.modules.get("datasets")
        if datasets and datasets.are_progress_bars_disabled() is False:
            datasets.disable_progress_bars()
            stack.callback(datasets.enable_progress_bars)
        yield
