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


def similar(kept: sqlite3.Connection, instruction: str, *, most: float, before: int | None = None) -> str | None:
    """Whether one of the kept (of the first `before`) shares `most` (Jaccard) or more of its shingles with this one."""
    share, name = nearest(kept, instruction, before=before)
    return f"{share:.0%} the same as {name}" if share >= most else None


def prepare(kept: sqlite3.Connection) -> None:
    """Makes the tables that `add` fills."""
    kept.execute("CREATE TABLE instructions (number INTEGER PRIMARY KEY, name TEXT, text TEXT)")
    kept.execute("CREATE TABLE bands (band INTEGER, number INTEGER, PRIMARY KEY (band, number)) WITHOUT ROWID")


def count(kept: sqlite3.Connection) -> int:
    """How many instructions are kept."""
    found: int = kept.execute("SELECT COALESCE(MAX(number), 0) FROM instructions").fetchone()[0]
    return found


def add(kept: sqlite3.Connection, name: str, instruction: str) -> None:
    """Counts an instruction among the kept ones."""
    number = kept.execute("INSERT INTO instructions (name, text) VALUES (?, ?)", (name, instruction)).lastrowid
    kept.executemany("INSERT INTO bands VALUES (?, ?)", [(band, number) for band in _bands(instruction)])


def nearest(kept: sqlite3.Connection, instruction: str, *, before: int | None = None) -> tuple[float, str]:
    """The largest share of shingles in common with a kept instruction, and which; (0.0, "") where none is near."""
    own = shingles(instruction)
    bands = sorted(_bands(instruction))
    query = (
        f"SELECT number FROM bands WHERE band IN ({', '.join('?' * len(bands))}) AND number <= ? "
        "GROUP BY number HAVING COUNT(*) > 1 ORDER BY COUNT(*) DESC, number LIMIT ?"
    )
    last = count(kept) if before is None else before
    numbers = [number for (number,) in kept.execute(query, (*bands, last, CANDIDATES))]
    found = [kept.execute("SELECT text, name FROM instructions WHERE number = ?", (n,)).fetchone() for n in numbers]
    return max(((overlap(own, shingles(text)), name) for text, name in found), default=(0.0, ""), key=lambda f: f[0])


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
