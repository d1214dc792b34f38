"""Drawing: matplotlib figures as SVG that takes its colours and fonts from the page, the same bytes every time."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from prune.report.blocks import Data, Plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours that stand for the page's: drawn as these, then named as CSS variables with a fallback for the file alone.
INK, MUTED, GRID = "#010203", "#020304", "#030405"
BEFORE, AFTER, CUT, PAPER = "#040506", "#050607", "#060708", "#070809"
SERIES = ("#0a0b0c", "#0b0c0d", "#0c0d0e", "#0d0e0f")
SMALL = 9.8  # points, for ticks and notes
_VARIABLES = {
    INK: ("ink", "#1d2327"),
    MUTED: ("muted", "#5d6872"),
    GRID: ("line", "#dfe3e6"),
    BEFORE: ("before", "#8a949d"),
    AFTER: ("after", "#0b7a6f"),
    CUT: ("cut", "#cf4a12"),
    PAPER: ("paper", "#ffffff"),
    SERIES[0]: ("after", "#0b7a6f"),
    SERIES[1]: ("second", "#7a4fb5"),
    SERIES[2]: ("third", "#b5791b"),
    SERIES[3]: ("fourth", "#2f6fb3"),
}
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "prune",
    "svg.fonttype": "none",
    "font.size": 10.5,
    "axes.titlesize": 10.5,
    "axes.labelsize": 10.5,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
    "figure.constrained_layout.use": True,
}


@contextmanager
def figure(width: float = 5.0, height: float = 3.0) -> Iterator[Figure]:
    """A figure of `width` x `height` inches in the page's style; narrow enough for a telephone."""
    import matplotlib as mpl
    from matplotlib.figure import Figure as New

    plain: dict[Any, Any] = {
        name: value for name, value in mpl.rcParamsDefault.items() if not name.startswith("backend")
    }
    with mpl.rc_context({**plain, **_STYLE}):  # whatever the user's own style is
        yield New(figsize=(width, height))


def plot(name: str, title: str, caption: str, drawn: Figure, data: Data) -> Plot:
    """The figure, inside its `with`, as a block with its numbers."""
    return Plot(name, title, caption, svg(drawn, name), data)


def svg(drawn: Figure, name: str) -> str:
    """The figure as one <svg> element: no date, no fixed size, colours by name, and ids that begin with `name`."""
    written = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the reader's fonts draw the text, not matplotlib's
        drawn.savefig(written, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = written.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font(-family)?:([^;\"]*?)'[^;\"]*", r"font\1:\2var(--font, sans-serif)", text)
    for colour, (variable, fallback) in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable}, {fallback})")
    return re.sub(r"\s*\n\s*", "\n", text)


def short(text: str, most: int = 32) -> str:
    """A name from outside, cut where it would push the plot aside."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def tidy(axes: Any, *, grid: str = "y") -> None:
    """Thin lines across one direction, and nothing else."""
    axes.grid(axis=grid)
    axes.spines[["left", "bottom"]].set_visible(False)
