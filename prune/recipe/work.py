"""The work folder beside an output: finished steps, each whole, trusted only after a look at its hashes."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prune import files
from prune.errors import PruneError

STEP = "step.json"
LOCK = "lock"
_NAME = re.compile(r"[0-9]+-[a-z_]+-[0-9a-f]{12}")
UNFINISHED = ".unfinished"
_OURS = re.compile(rf"{_NAME.pattern}({re.escape(UNFINISHED)})?|{LOCK}|\.{_NAME.pattern}\.tmp-[0-9a-f]{{8}}")


@dataclass(frozen=True)
class Done:
    """A finished step: what was called, what it left and said, and its files with their hashes."""

    key: str
    word: str
    options: dict[str, Any]
    record: dict[str, Any]
    warnings: list[str]
    checkpoint: list[str]  # names of the model's files; empty when the step did not change the model
    files: dict[str, str]
    timings: dict[str, Any] = field(default_factory=dict)

    @property
    def artefacts(self) -> list[str]:
        """The files it left besides a model."""
        return [name for name in self.files if name not in self.checkpoint]


def beside(output: Path) -> Path:
    """The work folder of an output."""
    return output.with_name(f"{output.name}.work")


@contextmanager
def opened(output: Path) -> Iterator[Path]:
    """The work folder, made where it is missing and held against other runs; gone again if no step was finished in it.

    PruneError when another run holds it, or when it holds something that is not ours.
    """
    work = beside(output)
    refuse_foreign(work)
    made = [path for path in (work, *work.parents) if not path.exists()]
    files.make(work)
    try:
        with _held(work, output):
            yield work
    finally:
        for path in made:  # those that stayed empty
            with suppress(OSError):
                path.rmdir()


@contextmanager
def _held(work: Path, output: Path) -> Iterator[None]:
    with files.lock(work / LOCK):
        if not (work / LOCK).exists():  # the other run ended, and took the folder away, while we opened it
            raise PruneError("another run was writing here and has just ended; start again", where=str(output))
        for name in (output.name, work.name):
            files.clean_stale(output.parent, name)
        for leftover in work.glob(".*"):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            yield
        finally:
            if work.is_dir() and {path.name for path in work.iterdir()} <= {LOCK}:
                shutil.rmtree(work, ignore_errors=True)


def has_stale(output: Path) -> bool:
    """Whether a kill left something beside the output that `opened` would clean up."""
    return any(files.has_stale(output.parent, name) for name in (output.name, beside(output).name))


def refuse_foreign(work: Path) -> None:
    """PruneError when the work folder's name is taken by something else."""
    if work.exists() and not work.is_dir():
        raise PruneError("is a file where the finished steps would go; choose another output", where=str(work))
    for path in work.iterdir() if work.is_dir() else ():
        if not _OURS.fullmatch(path.name):
            raise PruneError(
                f"holds {path.name!r}, which is not a finished step; choose another output", where=str(work)
            )


def folder(work: Path, number: int, word: str, key: str) -> Path:
    """Where a step is kept; `number` counts from 1."""
    return work / f"{number}-{word}-{key[:12]}"


def unfinished(folder: Path) -> Path:
    """Where the step of a folder leaves what a next try of it goes on from."""
    return folder.with_name(folder.name + UNFINISHED)


def keep_only(work: Path, wanted: set[Path]) -> None:
    """Removes the finished steps of another recipe."""
    for path in work.iterdir():
        if path.name != LOCK and path.with_name(path.name.removesuffix(UNFINISHED)) not in wanted:
            files.discard(path)


def record(staging: Path, done: Done) -> None:
    """Writes what a step left beside its files, before they are committed."""
    content = asdict(done)
    files.write_json(staging / files.TIMINGS, content.pop("timings"))
    files.write_json(staging / STEP, content)


def recall(folder: Path, key: str) -> Done | None:
    """The finished step in a folder, when its key is this one and every file is what it was; None otherwise."""
    try:
        content = files.read_json(folder / STEP)
        timings = files.read_json(folder / files.TIMINGS)
        done = Done(**content, timings=timings)
    except (PruneError, TypeError):
        return None
    if done.key != key or files.compare(folder, done.files, ignore={STEP, files.TIMINGS}):
        return None
    return done


def plain(value: Any) -> Any:
    """A value as JSON can hold it: tuples are lists, and what is not finite is null."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
