"""What was asked and answered, line by line on the disk: whatever stops a run, nothing answered is asked again."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from prune.errors import PruneError
from prune.synthesis.writers.writer import Reply, Request, Writer

SECONDS = 1.0  # between two flushes to the disk: a kill loses nothing, a power cut at most what came since
HEAD = b'{"key": "' + b"0" * 64 + b'", "text": "'  # how each line begins, but for the digits


class Answers:
    """A writer with a memory. The memory is a file that only grows; where each answer stands is a table on the disk."""

    def __init__(self, path: Path, index: sqlite3.Connection, writer: Writer):
        self.asked = 0  # of this process
        self.writer = writer
        self._file = path.open("ab")
        self._reader = path.open("rb")
        self._index = index
        self._flushed = time.monotonic()
        self._sound = False  # the writer has answered something
        self._held: list[tuple[bytes, Reply]] = []  # what it refused before

    def ask(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        """(position, reply) of each request, as they come; what was answered before comes first.

        Only what was never answered is asked. The same request twice is asked once. With a writer that `grows`,
        requests may be added while replies are taken.
        """
        once: list[Request] = []  # what the writer is shown: each request once
        keys: list[bytes] = []  # of those
        wanted: set[int] = set()  # which of them it is to answer
        waiting: dict[bytes, list[int]] = {}  # key -> the positions that wait for it
        looked = 0

        def answered() -> Iterator[tuple[int, Reply]]:
            """Of what was added since, what is known already; the rest is put before the writer."""
            nonlocal looked
            while looked < len(requests):
                position, looked = looked, looked + 1
                key = self._key(requests[position])
                found = self._recall(key)
                if key not in waiting:
                    waiting[key] = []
                    wanted.update([len(once)] if found is None else [])
                    once.append(requests[position])
                    keys.append(key)
                if found is None:
                    waiting[key].append(position)
                else:
                    yield position, found

        yield from answered()
        try:
            for number, reply in self.writer.answer(once, wanted) if wanted else ():
                self.asked += 1
                kept = self._keep(keys[number], reply)
                yield from ((position, kept) for position in waiting[keys[number]])
                yield from answered()
        finally:
            self._flush()

    def _key(self, request: Request) -> bytes:
        said = [self.writer.identity, request.prompt, request.tokens, request.temperature, request.seed]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).digest()

    def _keep(self, key: bytes, reply: Reply) -> Reply:
        """Writes a reply down; gives it as it is recalled, without halves of surrogate pairs.

        What is refused before anything is answered may be so by mistake: it is written down after the first answer.
        """
        kept = replace(reply, text=reply.text.encode("utf-8", "replace").decode())
        self._held.append((key, kept))
        self._sound = self._sound or not kept.refused
        while self._sound and self._held:
            self._write(*self._held.pop(0))
        return kept

    def _write(self, key: bytes, reply: Reply) -> None:
        place = self._file.tell()
        values = {name: value for name, value in vars(reply).items() if name != "refused"}
        line = json.dumps({"key": key.hex(), **values}, ensure_ascii=False)
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        self._index.execute("INSERT OR IGNORE INTO answers VALUES (?, ?)", (key, place))
        if time.monotonic() - self._flushed > SECONDS:
            self._flush()

    def close(self) -> None:
        """Puts everything on the disk and lets go of the file."""
        self._flush()
        self._file.close()
        self._reader.close()

    def _flush(self) -> None:
        os.fsync(self._file.fileno())
        self._flushed = time.monotonic()

    def _recall(self, key: bytes) -> Reply | None:
        row = self._index.execute("SELECT place FROM answers WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        self._reader.seek(row[0])
        found = _parsed(self._reader.readline())
        assert found and found[0] == key, key.hex()
        return found[1]


@contextmanager
def opened(path: Path, index: sqlite3.Connection, writer: Writer) -> Iterator[Answers]:
    """The answers in a file, made where it is missing. A last line that a kill has torn is cut off.

    PruneError when it cannot be written or holds something else.
    """
    index.execute("CREATE TABLE answers (key BLOB PRIMARY KEY, place INTEGER) WITHOUT ROWID")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        _learn(path, index)
        answers = Answers(path, index, writer)
    except OSError as error:
        raise PruneError(f"cannot be written: {error.strerror}", where=str(path)) from None
    try:
        yield answers
    finally:
        answers.close()


def _learn(path: Path, index: sqlite3.Connection) -> None:
    """Where each answer stands. Lines that are damaged are passed over, and so asked again."""
    place = 0
    with path.open("rb") as lines:
        for line in lines:
            torn = not line.endswith(b"\n")
            found = None if torn else _parsed(line)
            if place == 0 and not (_begins(line) if torn else found):
                raise PruneError("holds something other than answers; choose another file", where=str(path))
            if torn:
                break
            if found:
                index.execute("INSERT OR IGNORE INTO answers VALUES (?, ?)", (found[0], place))
            place += len(line)
    os.truncate(path, place)


def _begins(piece: bytes) -> bool:
    """Whether a torn line can be one of ours."""
    plain, head = (re.sub(rb"[0-9a-f]", b"0", each) for each in (piece, HEAD))
    return plain[: len(head)] == head[: len(piece)]


def _parsed(line: bytes) -> tuple[bytes, Reply] | None:
    try:
        values = json.loads(line)
        return bytes.fromhex(values.pop("key")), Reply(**values)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
