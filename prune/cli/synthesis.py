"""The command that writes instruction data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from prune.cli._command import DEVICES, Shown, command

if TYPE_CHECKING:
    from prune.progress import Progress


@command
@click.argument("config")
@click.option("--output", type=click.Path(path_type=Path), help="Instead of the config's.")
@click.option("--device", type=DEVICES, help="Instead of the config's.")
@click.option("--dry-run", is_flag=True, help="Only check the config, its seeds and its writer.")
@click.option("--overwrite", is_flag=True, help="Replace an output that prune made.")
def synthesize(
    config: str, *, output: Path | None, device: str | None, dry_run: bool, overwrite: bool, progress: Progress
) -> Shown:
    """Grow the instructions that CONFIG names into a varied data set. A stopped run goes on where it was."""
    from prune.recipe.synthesis import synthesize as run
    from prune.report.table import Table
    from prune.synthesis.summary import lines, sentences

    found = run(config, output=output, device=device, dry_run=dry_run, overwrite=overwrite, progress=progress)
    if dry_run:
        return found, [f"{config}: all well; it would write {found['output']}"], 0
    head, rows = lines(found)
    done = "written" if found["state"] == "done" else "there already, and what this config makes"
    table = Table(tuple(head), rows, frozenset(range(len(head))))
    return found, [table, *sentences(found), f"{found['output']}: {done}"], 0
