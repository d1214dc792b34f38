"""Folders that appear whole or not at all, the hashes that prove it, and one run at a time per folder."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from prune.errors import PruneError

MANIFEST = "prune.json"
MARK = "prune-output"  # the value of "format" in a prune.json of ours
TIMINGS = "timings.json"  # differs from run to run, so no hash of it is kept; has those of what is drawn from it
REPORT = "report"  # the folder of what is drawn from prune.json and timings.json
_UNHASHED = {MANIFEST, TIMINGS}
_RENAME_EXCHANGE = 2  # <linux/fs.h>
_AT_FDCWD = -100
_NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM}


@contextmanager
def staged(folder: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A fresh folder beside `folder` that takes its place in one rename when the block ends well.

    With `overwrite`, a folder of ours that stands there is exchanged and then removed; without it, or where the folder
    is not ours, PruneError. When anything fails the staging folder goes and `folder` is as it was.
    """
    target = Path(folder).resolve()
    refuse_occupied(target, overwrite=overwrite)
    staging = _sibling(target, "tmp")
    make(staging)
    try:
        yield staging
        flush(staging)
        refuse_occupied(target, overwrite=overwrite)  # it may have come while we worked
        _commit(staging, target)
    finally:
        # After a good exchange this name holds the old folder; what cannot be removed now, clean_stale removes.
        shutil.rmtree(staging, ignore_errors=True)


def make(folder: Path) -> None:
    """Makes a folder and those around it; PruneError where the system does not let it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PruneError(f"cannot be written: {error.strerror}", where=str(folder.parent)) from None


def refuse_occupied(folder: Path, *, overwrite: bool) -> None:
    """PruneError when `folder` may not be written: it is a file, not ours, or ours and `overwrite` is not given.

    Nor when it holds files that its prune.json does not list: those are somebody's own.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise PruneError("is a file, not a folder; choose another output", where=str(folder))
    if not any(folder.iterdir()):
        return
    if not is_ours(folder):
        raise PruneError(
            "exists and was not made by prune, so it is never replaced; choose another output", where=str(folder)
        )
    if not overwrite:
        raise PruneError("exists; --overwrite replaces it", where=str(folder))
    if strange := unlisted(folder):
        named = ", ".join(strange[:3]) + (" ..." if len(strange) > 3 else "")
        raise PruneError(
            f"holds files that prune did not write ({named}); move them elsewhere first", where=str(folder)
        )


def unlisted(folder: str | Path) -> list[str]:
    """The files in an output of ours that its prune.json does not list."""
    listed = manifest(folder)["files"] | reported(folder)
    return [name for name in names(folder) if name not in listed and name not in _UNHASHED]


def reported(folder: str | Path) -> dict[str, str]:
    """The report's files and their hashes, which timings.json keeps: it shows times, and differs as they do."""
    if not Path(folder, TIMINGS).is_file():
        return {}
    found = read_json(Path(folder, TIMINGS)).get("report", {})
    whole = isinstance(found, dict) and all(str(name).startswith(f"{REPORT}/") for name in found)
    return found if whole else {}


def _sibling(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name}.{kind}-{secrets.token_hex(4)}")


def _commit(staging: Path, target: Path) -> None:
    if not target.exists():
        staging.rename(target)
    elif not _exchange(staging, target):
        _two_renames(staging, target)
    _sync(target.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two names in one system call; False where the system or the file system has no such call."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(other))


def _two_renames(staging: Path, target: Path) -> None:
    """The exchange where there is none. A kill between the two leaves `.NAME.old-*`, which clean_stale puts back."""
    old = _sibling(target, "old")
    target.rename(old)
    try:
        staging.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def replace_report(folder: Path, drawn: Mapping[str, str], timings: dict) -> None:
    """Puts another report in an output of ours, whole; PruneError when somebody's own files are in its place.

    `drawn` is file name -> text. A kill between the report and timings.json leaves one that `verify` calls changed.
    """
    strange = [name for name in unlisted(folder) if name.startswith(f"{REPORT}/")]
    if strange:
        raise PruneError(f"holds files that prune did not write ({strange[0]}); move them first", where=str(folder))
    target = folder.resolve()
    staging = _sibling(target, "tmp")
    make(staging)
    try:
        table = write_report(staging, drawn)
        write_json(staging / TIMINGS, timings | {"report": table})
        flush(staging)
        _commit(staging / REPORT, target / REPORT)
        (staging / TIMINGS).replace(target / TIMINGS)
        _sync(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_report(folder: Path, drawn: Mapping[str, str]) -> dict[str, str]:
    """Writes a report's files into `folder`/report; the table of their hashes."""
    make(folder / REPORT)
    for name, text in drawn.items():
        (folder / REPORT / name).write_text(text, encoding="utf-8", newline="")
    return {f"{REPORT}/{name}": sha256(folder / REPORT / name) for name in sorted(drawn)}


def clean_stale(parent: str | Path, name: str) -> None:
    """Removes what a kill left beside `parent/name`, and puts back an old folder caught between two renames.

    Only for the holder of the lock: another run's staging folder looks the same.
    """
    for old in _stale(Path(parent), name, "old"):
        target = old.with_name(name)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(target)
    for staging in _stale(Path(parent), name, "tmp"):
        shutil.rmtree(staging, ignore_errors=True)


def has_stale(parent: str | Path, name: str) -> bool:
    """Whether clean_stale would find something."""
    return bool(_stale(Path(parent), name, "old") or _stale(Path(parent), name, "tmp"))


def _stale(parent: Path, name: str, kind: str) -> list[Path]:
    pattern = re.compile(re.escape(f".{name}.{kind}-") + "[0-9a-f]{8}")
    return sorted(path for path in parent.iterdir() if pattern.fullmatch(path.name)) if parent.is_dir() else []


def discard(folder: Path) -> None:
    """Removes a folder so that a kill half way leaves nothing under its name."""
    if folder.exists():
        doomed = _sibling(folder.resolve(), "tmp")
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def flush(folder: Path) -> None:
    """Puts every file and folder below `folder`, and itself, on the disk."""
    for root, _, files in os.walk(folder, topdown=False):
        for name in files:
            _sync(Path(root, name))
        _sync(Path(root))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def names(folder: str | Path) -> list[str]:
    """The files below `folder` (links too), as sorted names relative to it with forward slashes."""
    root = Path(folder)
    return sorted(Path(where, name).relative_to(root).as_posix() for where, _, files in os.walk(root) for name in files)


def sha256(path: str | Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hashes(folder: str | Path) -> dict[str, str]:
    """File name relative to `folder` -> sha256, sorted; prune.json and timings.json left out."""
    return {name: sha256(Path(folder, name)) for name in names(folder) if name not in _UNHASHED}


def verify(folder: str | Path) -> list[str]:
    """What in an output of ours differs from the hashes in its prune.json, a line each; empty when all is well.

    PruneError when the folder has no prune.json of ours.
    """
    return compare(folder, manifest(folder)["files"] | reported(folder), ignore=_UNHASHED)


def compare(folder: str | Path, listed: dict[str, str], *, ignore: set[str] | None = None) -> list[str]:
    """What in `folder` differs from a table file name -> sha256: missing, extra, changed or linked files."""
    present = set(names(folder)) - (ignore or set())
    problems = [f"{name}: missing" for name in listed if name not in present]
    for name in present:
        path = Path(folder, name)
        if name not in listed:
            problems.append(f"{name}: not listed")
        elif path.is_symlink():
            problems.append(f"{name}: a link, not a file")
        elif sha256(path) != listed[name]:
            problems.append(f"{name}: changed")
    return sorted(problems)


def manifest(folder: str | Path) -> dict:
    """The prune.json of an output of ours; PruneError when there is none or it is damaged."""
    path = Path(folder, MANIFEST)
    if not path.is_file():
        raise PruneError(f"has no {MANIFEST}, so it is not an output of prune", where=str(folder))
    content = read_json(path)
    files = content.get("files")
    if content.get("format") != MARK or not isinstance(files, dict):
        raise PruneError(f"is not a {MANIFEST} of prune", where=str(path))
    return content


def is_ours(folder: str | Path) -> bool:
    """Whether prune wrote this folder."""
    try:
        return bool(manifest(folder))
    except PruneError:
        return False


@contextmanager
def lock(path: str | Path) -> Iterator[None]:
    """Holds `path` for this process. The kernel frees it when the process ends, however it ends.

    PruneError at once when another process holds it.
    """
    import filelock

    held = filelock.FileLock(path)
    try:
        held.acquire(timeout=0)
    except filelock.Timeout:
        raise PruneError("another run is writing here; wait for it or choose another output", where=str(path)) from None
    try:
        yield
    finally:
        held.release()


def read_json(path: str | Path) -> dict:
    """A JSON file that holds one object; PruneError otherwise."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PruneError(f"cannot be read as JSON: {error}", where=str(path)) from None
    if not isinstance(content, dict):
        raise PruneError("does not hold a JSON object", where=str(path))
    return content


def write_json(path: str | Path, content: object) -> None:
    """The same content always gives the same bytes; ValueError on NaN and infinities, which JSON has not."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    Path(path).write_text(text + "\n", encoding="utf-8")


def link_or_copy(source: str | Path, target: str | Path) -> bool:
    """Gives a file a second name (True), or a copy where the file system does not link (False)."""
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    Path(target).unlink(missing_ok=True)
    try:
        Path(target).hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
        return False
    return True
