"""Similar: a near-duplicate of an instruction that is kept (MinHash, https://doi.org/10.1109/SEQUEN.1997.666900).

Candidates are found by the bands of their signatures in a table on the disk, so that memory does not grow with what
is kept, and are then compared exactly.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator

from prune.synthesis.words import overlap, shingles

HASHES = 128
ROWS = 4  # hashes in a band: two texts that share 0.7 of their shingles share a band with a chance of 0.9998
CANDIDATES = 50  # at most so many are compared exactly, those that share most bands


def similar(kept: sqlite3.Connection, instruction: str, *, most: float) -> str | None:
    """Whether a kept instruction shares `most` (Jaccard) or more of its shingles with this one."""
    share, name = nearest(kept, instruction)
    return f"{share:.0%} the same as {name}" if share >= most else None


def prepare(kept: sqlite3.Connection) -> None:
    """Makes the tables that `add` fills."""
    kept.execute("CREATE TABLE instructions (number INTEGER PRIMARY KEY, name TEXT, text TEXT)")
    kept.execute("CREATE TABLE bands (band INTEGER, number INTEGER, PRIMARY KEY (band, number)) WITHOUT ROWID")


def add(kept: sqlite3.Connection, name: str, instruction: str) -> None:
    """Counts an instruction among the kept ones."""
    number = kept.execute("INSERT INTO instructions (name, text) VALUES (?, ?)", (name, instruction)).lastrowid
    found = {(band, number) for band in _bands(shingles(instruction))}
    kept.executemany("INSERT INTO bands VALUES (?, ?)", found)


def nearest(kept: sqlite3.Connection, instruction: str) -> tuple[float, str]:
    """The largest share of shingles in common with a kept instruction, and which; (0.0, "") where none is near."""
    own = shingles(instruction)
    bands = list(_bands(own))
    query = (
        f"SELECT number FROM bands WHERE band IN ({', '.join('?' * len(bands))}) "
        "GROUP BY number ORDER BY COUNT(*) DESC, number LIMIT ?"
    )
    numbers = [number for (number,) in kept.execute(query, (*bands, CANDIDATES))]
    found = [kept.execute("SELECT text, name FROM instructions WHERE number = ?", (n,)).fetchone() for n in numbers]
    return max(((overlap(own, shingles(text)), name) for text, name in found), default=(0.0, ""), key=lambda f: f[0])


def _bands(pieces: set[str]) -> Iterator[int]:
    """Each band of the signature, with its place, as a number of 64 bits."""
    from datasketch import MinHash

    signature = MinHash(num_perm=HASHES, seed=1)
    signature.update_batch([piece.encode() for piece in sorted(pieces)])
    values = signature.hashvalues
    for start in range(0, HASHES, ROWS):
        band = start.to_bytes(2, "big") + values[start : start + ROWS].astype(">u8").tobytes()
        yield int.from_bytes(hashlib.blake2b(band, digest_size=8).digest(), "big", signed=True)
