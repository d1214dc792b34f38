"""Commands that take a recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prune.cli._command import DEVICES, Shown, command

if TYPE_CHECKING:
    from prune.progress import Progress


def overrides(function: Callable) -> Callable:
    """The options that `apply` and `check` share."""
    function = click.option("--device", type=DEVICES, help="Instead of the recipe's.")(function)
    return click.option(
        "--set", "changes", multiple=True, metavar="PATH=VALUE", help="Change one value: steps.0.ratio=0.5. Repeatable."
    )(function)


together = click.option(
    "--processes", type=click.IntRange(1), default=1, show_default=True, help="For steps that train."
)


@command
@click.argument("recipe")
@click.option("--output", type=click.Path(path_type=Path), help="Instead of the recipe's.")
@overrides
@click.option("--dry-run", is_flag=True, help="Only check, as `prune check` does.")
@click.option("--restart", is_flag=True, help="Do all steps again, finished or not.")
@click.option("--overwrite", is_flag=True, help="Replace an output that prune made.")
@click.option("--keep-steps", is_flag=True, help="Keep the checkpoint of every step, in OUTPUT.work.")
@together
def apply(recipe: str, *, changes: tuple[str, ...], dry_run: bool, progress: Progress, **options: Any) -> Shown:
    """Run RECIPE: a file, or the name of a packaged recipe. A stopped run goes on where it was."""
    from prune.recipe import apply as run

    result = run(recipe, overrides=changes, dry_run=dry_run, progress=progress, **options)
    return outcome(result, progress)


@command
@click.argument("recipe")
@overrides
@together
def check(recipe: str, *, changes: tuple[str, ...], progress: Progress, **options: Any) -> Shown:
    """Say what RECIPE would do; reads no weights and writes nothing."""
    from prune.recipe import check as rehearse

    return outcome(rehearse(recipe, overrides=changes, **options), progress)


def outcome(result: Any, progress: Progress) -> Shown:
    """What a run or a check of a recipe shows."""
    from prune.report import summary

    if result.state == "followed":
        return {"state": result.state}, [], 0
    for warning in result.warnings:
        progress.say(f"warning: {warning}")
    data = summary.as_data(result.state, result.output, result.steps, result.timings)
    data |= {"remarks": result.remarks} if result.remarks else {}
    data |= {"runtimes": result.runtimes} if result.runtimes else {}
    return data, summary.blocks(result.output, result.steps, result.timings, result.remarks, result.runtimes), 0
