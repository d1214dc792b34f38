"""Similar: a near-duplicate of an instruction that is kept (MinHash, https://doi.org/10.1109/SEQUEN.1997.666900).

Candidates are found by the bands of their signatures in a table on the disk, so that memory does not grow with what
is kept, and are then compared exactly.
"""

from __future__ import annotations

import hashlib
import sqlite3
import zlib
from functools import cache, lru_cache
from typing import Any

from prune.synthesis.words import overlap, shingles

HASHES = 128
ROWS = 4  # hashes in a band: two texts that share 0.7 of their shingles share two bands with a chance of 0.998
CANDIDATES = 20  # at most so many are compared exactly, those that share most bands
LINE = 0.95  # what an instruction may share with those it was made of, which it is asked to leave as they are


def similar(
    kept: sqlite3.Connection, instruction: str, *, most: float, parent: str | None = None, before: int | None = None
) -> str | None:
    """Whether one of the kept (of the first `before`) shares `most` (Jaccard) or more of its shingles with this one.

    With those it was made of, `parent` and that one's own, it may share more: only what is all but their copy is one.
    """
    line = _line(kept, parent)
    found = [
        (share, name)
        for share, name in near(kept, instruction, before=before, most=CANDIDATES + len(line))
        if share >= (max(most, LINE) if name in line else most)
    ]
    return "{:.0%} the same as {}".format(*max(found, key=lambda each: each[0])) if found else None


def prepare(kept: sqlite3.Connection) -> None:
    """Makes the tables that `add` fills."""
    kept.execute("CREATE TABLE instructions (number INTEGER PRIMARY KEY, name TEXT, text TEXT, parent TEXT)")
    kept.execute("CREATE INDEX names ON instructions (name)")
    kept.execute("CREATE TABLE bands (band INTEGER, number INTEGER, PRIMARY KEY (band, number)) WITHOUT ROWID")


def count(kept: sqlite3.Connection) -> int:
    """How many instructions are kept."""
    found: int = kept.execute("SELECT COALESCE(MAX(number), 0) FROM instructions").fetchone()[0]
    return found


def add(kept: sqlite3.Connection, name: str, instruction: str, *, parent: str | None = None) -> None:
    """Counts an instruction among the kept ones."""
    row = (name, instruction, parent)
    number = kept.execute("INSERT INTO instructions (name, text, parent) VALUES (?, ?, ?)", row).lastrowid
    kept.executemany("INSERT INTO bands VALUES (?, ?)", [(band, number) for band in _bands(instruction)])


def near(
    kept: sqlite3.Connection, instruction: str, *, before: int | None = None, most: int = CANDIDATES
) -> list[tuple[float, str]]:
    """The share of shingles in common with each kept instruction that may be near, and its name; `most` of them."""
    own = shingles(instruction)
    bands = sorted(_bands(instruction))
    query = (
        f"SELECT number FROM bands WHERE band IN ({', '.join('?' * len(bands))}) AND number <= ? "
        "GROUP BY number HAVING COUNT(*) > 1 ORDER BY COUNT(*) DESC, number LIMIT ?"
    )
    last = count(kept) if before is None else before
    numbers = [number for (number,) in kept.execute(query, (*bands, last, most))]
    found = [kept.execute("SELECT text, name FROM instructions WHERE number = ?", (n,)).fetchone() for n in numbers]
    return [(overlap(own, shingles(text)), name) for text, name in found]


def _line(kept: sqlite3.Connection, parent: str | None) -> set[str]:
    """The names of an instruction's parent and its parents."""
    query = (
        "WITH RECURSIVE line (name) AS (SELECT ? UNION SELECT parent FROM line JOIN instructions USING (name) "
        "WHERE parent IS NOT NULL) SELECT name FROM line"
    )
    return {name for (name,) in kept.execute(query, (parent,))} if parent else set()


@lru_cache(maxsize=1024)  # each instruction is looked for twice, and then added
def _bands(instruction: str) -> frozenset[int]:
    """Each band of the signature, with its place, as a number of 64 bits."""
    signature = _blank().copy()
    signature.update_batch([piece.encode() for piece in shingles(instruction)])
    values = signature.hashvalues.astype(">u8")
    bands = (start.to_bytes(2, "big") + values[start : start + ROWS].tobytes() for start in range(0, HASHES, ROWS))
    digests = (hashlib.blake2b(band, digest_size=8).digest() for band in bands)
    return frozenset(int.from_bytes(digest, "big", signed=True) for digest in digests)


@cache
def _blank() -> Any:
    """The signature of nothing; to draw its permutations takes longer than to use them."""
    from datasketch import MinHash

    return MinHash(num_perm=HASHES, seed=1, hashfunc=zlib.crc32)
