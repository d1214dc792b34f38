"""The command that draws what runs left."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from prune.cli._command import Shown, command

if TYPE_CHECKING:
    from prune.progress import Progress


@command
@click.argument("outs", metavar="OUT...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="The page of a comparison: comparison.html by default.")
@click.option("--overwrite", is_flag=True, help="Replace a file of somebody else's in its place.")
def report(outs: tuple[Path, ...], *, output: Path | None, overwrite: bool, progress: Progress) -> Shown:
    """Draw the report of OUT again; with several, compare them on one page."""
    from prune.report import write

    with progress.track("drawing"):
        if len(outs) == 1 and output is None:
            page = write.again(outs[0])
        else:
            page = write.compared(outs, output or Path("comparison.html"), overwrite=overwrite)
    return {"report": str(page), "runs": [str(out) for out in outs]}, [f"report: {page}"], 0
