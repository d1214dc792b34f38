"""Commands that take an output of prune."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from prune.cli._command import Shown, command

if TYPE_CHECKING:
    from prune.progress import Progress


@command
@click.argument("out", type=click.Path(path_type=Path))
def verify(out: Path, *, progress: Progress) -> Shown:
    """Compare every file of OUT with the hashes in its prune.json."""
    from prune import files

    with progress.track(f"hashing {out}"):
        problems = files.verify(out)
    count = len(files.manifest(out)["files"])
    said = [f"{out}/{problem}" for problem in problems] or [f"{out}: {count} files, all as they were written"]
    return {"files": count, "problems": problems}, said, 1 if problems else 0
