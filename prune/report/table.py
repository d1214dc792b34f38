"""Tables for people: drawn by rich on a terminal, aligned plain text anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO


@dataclass(frozen=True)
class Table:
    """Rows of text under a head; all of one length. `right` are the columns that hold numbers."""

    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    right: frozenset[int] = frozenset()


def size(count: float) -> str:
    """Bytes as people say them: 7.4 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError(count)


def amount(count: float) -> str:
    """A number of things as people say it: 999, 3.22 M, 6.74 G."""
    for unit in ("", "k", "M", "G"):
        if count < 1000 or unit == "G":
            return f"{count:.3g} {unit}".rstrip() if count < 1000 else f"{count:,.0f} {unit}"
        count /= 1000
    raise AssertionError(count)


def show(blocks: Sequence[Table | str], stream: TextIO | None = None) -> None:
    """Prints tables and lines, by default on stdout. NO_COLOR is respected, and control characters are not printed."""
    stream = stream or sys.stdout
    for block in blocks:
        if isinstance(block, str):
            print(clean(block), file=stream)
        elif stream.isatty():
            _drawn(block, stream)
        else:
            print(plain(block), file=stream)


def plain(table: Table) -> str:
    """Columns two spaces apart."""
    lines = [tuple(clean(cell) for cell in row) for row in (table.head, *table.rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.head))]
    return "\n".join("  ".join(_padded(table, line, widths)).rstrip() for line in lines)


def _padded(table: Table, line: tuple[str, ...], widths: list[int]) -> list[str]:
    return [
        cell.rjust(width) if column in table.right else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(line, widths, strict=True))
    ]


def _drawn(table: Table, stream: TextIO) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table as Drawn
    from rich.text import Text

    drawn = Drawn(box=SIMPLE_HEAD, pad_edge=False)
    for column, name in enumerate(table.head):
        drawn.add_column(Text(clean(name)), justify="right" if column in table.right else "left", overflow="fold")
    for row in table.rows:
        drawn.add_row(*(Text(clean(cell)) for cell in row))
    Console(file=stream).print(drawn)


def clean(text: str) -> str:
    """Text whose control characters, which could steer a terminal, are spelt out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
