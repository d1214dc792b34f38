"""What a page is made of: sections of prose, tables, plots, code, and a picture of the layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from prune.report.table import Table

Cell = str | int | float | None


@dataclass(frozen=True)
class Prose:
    """A paragraph."""

    kind: ClassVar[str] = "prose"
    text: str


@dataclass(frozen=True)
class Points:
    """Lines that stand for themselves; `tone` is "plain", "good" or "warn"."""

    kind: ClassVar[str] = "points"
    lines: Sequence[str]
    tone: str = "plain"


@dataclass(frozen=True)
class Rows:
    """A table; with `fold` it is closed until somebody opens it under that title."""

    kind: ClassVar[str] = "rows"
    table: Table
    fold: str = ""


@dataclass(frozen=True)
class Code:
    """Text as it stands, to copy."""

    kind: ClassVar[str] = "code"
    text: str


@dataclass(frozen=True)
class Pair:
    """One prompt and what two models made of it."""

    kind: ClassVar[str] = "pair"
    prompt: str
    before: str
    after: str


@dataclass(frozen=True)
class Data:
    """Numbers as a CSV file has them: the columns' names and the rows."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Plot:
    """A drawing with its numbers: `name` names the SVG and the CSV beside the page, `svg` is safe to inline."""

    kind: ClassVar[str] = "plot"
    name: str
    title: str
    caption: str
    svg: str
    data: Data


@dataclass(frozen=True)
class Strip:
    """Units side by side, some kept: SVG path data on a canvas `width` wide and 1 high."""

    width: float
    kept: str
    cut: str
    label: str
    share: float  # of the picture's column that the strip takes


@dataclass(frozen=True)
class Layer:
    """One row of the picture: a strip for each column, None where the layer has nothing there."""

    name: str
    note: str
    strips: Sequence[Strip | None]


@dataclass(frozen=True)
class Picture:
    """The layers of a model under each other, what was kept and what was cut drawn in each."""

    kind: ClassVar[str] = "picture"
    name: str
    title: str
    caption: str
    columns: Sequence[str]
    layers: Sequence[Layer]
    data: Data


Block = Prose | Points | Rows | Code | Pair | Plot | Picture


@dataclass(frozen=True)
class Section:
    """A part of the page under a heading; `slug` is its anchor."""

    slug: str
    title: str
    blocks: Sequence[Block]
    beside: bool = False  # plots stand beside the rest where there is room


@dataclass(frozen=True)
class Facts:
    """What a run left: the content of prune.json and the timings of its steps, one for one."""

    manifest: dict[str, Any]
    timings: Sequence[dict[str, Any]]

    @property
    def steps(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.manifest.get("steps", [])
        return found

    def records(self, name: str) -> list[tuple[int, Any]]:
        """The number, counted from 1, and the entry of every step that recorded `name`."""
        found = [(number, step["record"].get(name)) for number, step in enumerate(self.steps, 1)]
        return [(number, entry) for number, entry in found if entry]

    def timed(self, name: str) -> list[tuple[int, Any]]:
        """The same of the timings."""
        found = [(number, timing.get(name)) for number, timing in enumerate(self.timings, 1)]
        return [(number, entry) for number, entry in found if entry]
