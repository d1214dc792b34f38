"""The command that takes a merge config."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prune.cli._command import DEVICES, Shown, command

if TYPE_CHECKING:
    from prune.progress import Progress


@command
@click.argument("config")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--seed", type=click.IntRange(0), help="Of random masks; the config's random_seed, or 0, when left out.")
@click.option("--compat", type=click.Choice(["mergekit"]), help="Compute and draw as mergekit does, to the last bit.")
@click.option("--report", is_flag=True, help="Also write what happened to each layer, as table and plot.")
@click.option("--dry-run", is_flag=True, help="Only check; reads no weights and writes nothing.")
@click.option("--device", type=DEVICES, default="cpu", show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace an OUT that prune made.")
def merge(config: str, out: Path, *, device: str, overwrite: bool, progress: Progress, **options: Any) -> Shown:
    """Merge models as CONFIG, a mergekit YAML file, says, into the folder OUT."""
    from prune import files
    from prune.merging import write
    from prune.recipe.loop import pick_device
    from prune.report import summary

    files.refuse_occupied(out.resolve(), overwrite=overwrite)  # before a Hub model is downloaded
    found = write.written(config, out, device=pick_device(device), overwrite=overwrite, progress=progress, **options)
    for warning in found["warnings"]:
        progress.say(f"warning: {warning}")
    return found, summary.merged(found, out), 0
