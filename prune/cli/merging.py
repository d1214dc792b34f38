"""The commands that make a model of several, or of its own layers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prune.cli._command import DEVICES, Shown, command
from prune.cli.recipes import outcome

if TYPE_CHECKING:
    from prune.progress import Progress


@command
@click.argument("config")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--seed", type=click.IntRange(0), help="Of random masks; the config's random_seed, or 0, when left out.")
@click.option("--compat", type=click.Choice(["mergekit"]), help="Compute and draw as mergekit does, to the last bit.")
@click.option(
    "--report/--no-report", default=True, show_default=True, help="Say what happened to each layer, as table and plot."
)
@click.option("--dry-run", is_flag=True, help="Only check; reads no weights and writes nothing.")
@click.option("--device", type=DEVICES, default="cpu", show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace an OUT that prune made.")
def merge(config: str, out: Path, *, device: str, overwrite: bool, progress: Progress, **options: Any) -> Shown:
    """Merge models as CONFIG, a mergekit YAML file, says, into the folder OUT."""
    from prune import files
    from prune.recipe import merging
    from prune.recipe.loop import pick_device
    from prune.report import summary

    files.refuse_occupied(out.resolve(), overwrite=overwrite)  # before a Hub model is downloaded
    found = merging.merge(config, out, device=pick_device(device), overwrite=overwrite, progress=progress, **options)
    for warning in found["warnings"]:
        progress.say(f"warning: {warning}")
    return found, summary.merged(found, None if options["dry_run"] else out), 0


@command
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--drop",
    type=click.IntRange(0),
    help="Two copies, the first without its last so many layers, the second without its first.",
)
@click.option("--layers", help="These runs of layers, one upon the other: 0-23,8-31.")
@click.option("--expand", type=click.IntRange(1), metavar="N", help="After every N-th layer a copy that adds nothing.")
@click.option("--dry-run", is_flag=True, help="Only check; reads no weights and writes nothing.")
@click.option("--overwrite", is_flag=True, help="Replace an OUT that prune made.")
def upscale(
    model: str,
    out: Path,
    *,
    drop: int | None,
    layers: str | None,
    expand: int | None,
    dry_run: bool,
    overwrite: bool,
    progress: Progress,
) -> Shown:
    """Grow MODEL by stacking its own layers, into the folder OUT: the recipe of this one step."""
    from prune.recipe import apply

    given = {"drop": drop, "layers": layers and layers.split(","), "expand": expand and f"every {expand}"}
    step = {"upscale": {name: value for name, value in given.items() if value is not None}}
    recipe = {"model": model, "output": str(out), "steps": [step]}
    return outcome(apply(recipe, dry_run=dry_run, overwrite=overwrite, progress=progress), progress)
