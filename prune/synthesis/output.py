"""What a synthesis leaves: the data as JSONL and parquet, the ledger of what was rejected, and the page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prune.synthesis.items import RULES, Attempt, chat

if TYPE_CHECKING:
    import pyarrow as pa

DATA, TABLE, LEDGER, PAGE = "data.jsonl", "data.parquet", "rejected.jsonl", "index.html"
ROWS = 512  # of a row group


class Files:
    """The files being written; a row goes to both forms of the data."""

    def __init__(self, folder: Path, writer: str):
        import pyarrow.parquet as pq

        self.writer = writer
        self._data = (folder / DATA).open("w", encoding="utf-8")
        self._ledger = (folder / LEDGER).open("w", encoding="utf-8")
        self._table = pq.ParquetWriter(folder / TABLE, schema())
        self._rows: list[dict[str, Any]] = []

    def add(self, attempt: Attempt) -> None:
        """A kept item to the data, any other to the ledger."""
        row = chat(attempt.item, self.writer)
        if attempt.rejected:
            rule, why = attempt.rejected
            self._ledger.write(_line({"rule": rule, "why": why, **row}))
            return
        self._data.write(_line(row))
        self._rows.append(row)
        if len(self._rows) == ROWS:
            self._flush()

    def close(self) -> None:
        """Everything is in the files then."""
        if self._rows:
            self._flush()
        self._table.close()
        self._data.close()
        self._ledger.close()

    def _flush(self) -> None:
        import pyarrow as pa

        self._table.write_table(pa.Table.from_pylist(self._rows, schema=schema()))
        self._rows = []


@contextmanager
def opened(folder: Path, writer: str) -> Iterator[Files]:
    """The files of a folder that is there."""
    found = Files(folder, writer)
    try:
        yield found
    finally:
        found.close()


def schema() -> pa.Schema:
    """The columns of the parquet file."""
    import pyarrow as pa

    text = pa.string()
    lineage = pa.struct(
        [
            ("seed", text),
            ("parent", text),
            ("round", pa.int32()),
            ("operations", pa.list_(text)),
            ("writer", text),
            ("verdicts", pa.struct([(rule, text) for rule in RULES])),
            ("ratings", pa.list_(pa.int32())),
            ("truncated", pa.bool_()),
        ]
    )
    messages = pa.list_(pa.struct([("role", text), ("content", text)]))
    labels = [(name, text) for name in ("skill", "difficulty", "topic", "kind", "format", "language")]
    return pa.schema([("id", text), ("messages", messages), *labels, ("lineage", lineage)])


def _line(row: dict[str, Any]) -> str:
    """One line of JSON. U+2028 and U+2029 end lines for some readers, so they are spelt out."""
    text = json.dumps(row, ensure_ascii=False)
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").replace("\x85", "\\u0085") + "\n"
