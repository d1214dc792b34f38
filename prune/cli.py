"""The command line: each command is a few lines around a call of the API. Heavy imports stay inside the commands."""

from __future__ import annotations

import functools
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import prune
from prune.errors import PruneError

if TYPE_CHECKING:
    from types import TracebackType

    from prune.progress import Progress
    from prune.report.table import Table

DEVICES = click.Choice(["auto", "cpu", "cuda"])
DTYPES = click.Choice(["auto", "float32", "bfloat16", "float16"])
DEBUG = "PRUNE_DEBUG"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(prune.__version__, prog_name="prune")
def cli() -> None:
    """Structured pruning of Hugging Face models, by recipes."""


Shown = tuple[Any, Sequence["Table | str"], int]  # what --json prints, what people see, the exit code


def command(function: Callable[..., Shown]) -> Callable:
    """A command of the group with the options that all have; it gets `progress` and gives what is to be shown."""

    @functools.wraps(function)
    def called(*, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> None:
        from prune.progress import Progress, silence_others

        silence_others()
        result, blocks, code = function(progress=Progress(quiet=quiet, verbose=verbose), **options)
        if as_json:
            click.echo(json.dumps(result, indent=2, ensure_ascii=False))
        else:
            from prune.report.table import show

            show(blocks)
        raise click.exceptions.Exit(code)

    called = click.option("-v", "--verbose", is_flag=True, help="Say more on stderr.")(called)
    called = click.option("-q", "--quiet", is_flag=True, help="Say nothing on stderr but errors.")(called)
    called = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(called)
    return cli.command()(called)


def overrides(function: Callable) -> Callable:
    """The options that `apply` and `check` share."""
    function = click.option("--device", type=DEVICES, help="Instead of the recipe's.")(function)
    return click.option(
        "--set", "changes", multiple=True, metavar="PATH=VALUE", help="Change one value: steps.0.ratio=0.5. Repeatable."
    )(function)


@command
@click.argument("recipe")
@click.option("--output", type=click.Path(path_type=Path), help="Instead of the recipe's.")
@overrides
@click.option("--dry-run", is_flag=True, help="Only check, as `prune check` does.")
@click.option("--restart", is_flag=True, help="Do all steps again, finished or not.")
@click.option("--overwrite", is_flag=True, help="Replace an output that prune made.")
@click.option("--keep-steps", is_flag=True, help="Keep the checkpoint of every step, in OUTPUT.work.")
def apply(recipe: str, *, changes: tuple[str, ...], dry_run: bool, progress: Progress, **options: Any) -> Shown:
    """Run RECIPE: a file, or the name of a packaged recipe. A stopped run goes on where it was."""
    from prune.recipe import apply as run

    result = run(recipe, overrides=changes, dry_run=dry_run, progress=progress, **options)
    return _outcome(result, progress)


@command
@click.argument("recipe")
@overrides
def check(recipe: str, *, changes: tuple[str, ...], device: str | None, progress: Progress) -> Shown:
    """Say what RECIPE would do; reads no weights and writes nothing."""
    from prune.recipe import check as rehearse

    return _outcome(rehearse(recipe, overrides=changes, device=device), progress)


def _outcome(result: Any, progress: Progress) -> Shown:
    from prune.report import summary

    for warning in result.warnings:
        progress.say(f"warning: {warning}")
    data = summary.as_data(result.state, result.output, result.steps, result.timings)
    data |= {"remarks": result.remarks} if result.remarks else {}
    return data, summary.blocks(result.output, result.steps, result.timings, result.remarks), 0


@command
@click.argument("model")
@click.option("--revision", help="Of a Hub model.")
def inspect(model: str, *, revision: str | None, progress: Progress) -> Shown:  # noqa: ARG001
    """Show the groups of MODEL, and the shares of parameters and work they hold."""
    from prune.report import summary

    found = prune.inspect(prune.open(model, revision=revision, headers=True))
    return found, summary.inspection(found), 0


@command
@click.argument("model")
@click.option("--revision", help="Of a Hub model.")
@click.option("--perplexity", metavar="DATA", help="python-docs, a local file, or a Hub dataset id.")
@click.option("--length", type=click.IntRange(2), default=256, show_default=True, help="Tokens in a window.")
@click.option("--stride", type=click.IntRange(1), help="Tokens between windows; the length when left out.")
@click.option("--samples", type=click.IntRange(1), help="At most this many windows.")
@click.option("--field", help="The text field of a .jsonl, .parquet or Hub dataset.")
@click.option("--split", help="Of a Hub dataset or python-docs.")
@click.option("--speed", is_flag=True, help="Measure the latency of a forward pass.")
@click.option("--device", type=DEVICES, default="auto", show_default=True)
@click.option("--dtype", type=DTYPES, default="auto", show_default=True)
def evaluate(model: str, *, revision: str | None, device: str, dtype: str, **options: Any) -> Shown:
    """Measure MODEL: its size, and its perplexity and latency where asked for."""
    from prune.recipe.loop import pick_device
    from prune.report import summary
    from prune.steps import compute_dtype

    place = pick_device(device)
    opened = prune.open(model, revision=revision)
    found = prune.evaluate(opened, device=place, dtype=compute_dtype(place, dtype), **options)
    return found, summary.evaluation(found), 0


@command
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--format", "kind", default="onnx", show_default=True, help="See `prune list`.")
@click.option("--revision", help="Of a Hub model.")
@click.option("--overwrite", is_flag=True, help="Replace an OUT that prune made.")
def export(model: str, out: Path, *, kind: str, revision: str | None, overwrite: bool, progress: Progress) -> Shown:
    """Write MODEL to the folder OUT in a format that others serve."""
    from prune import files
    from prune.report import summary

    files.refuse_occupied(out, overwrite=overwrite)  # before a Hub model is downloaded
    opened = prune.open(model, revision=revision)
    found = prune.export(opened, out, format=kind, overwrite=overwrite, progress=progress)
    return found, summary.exported(found, out), 0


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


@command
@click.argument("name")
def new(name: str, *, progress: Progress) -> Shown:  # noqa: ARG001
    """Write NAME.yaml, a commented recipe to start from."""
    from prune.recipe.new import new as write

    path = write(name)
    return {"recipe": str(path)}, [f"{path} written; next: prune check {path}"], 0


@command
def list(*, progress: Progress) -> Shown:  # noqa: ARG001
    """List steps, criteria, model families, export formats and packaged recipes."""
    from prune.listing import listing
    from prune.report.table import Table

    found = listing()
    rows = [(kind, name, line) for kind, members in found.items() for name, line in members.items()]
    return found, [Table(("kind", "name", "what it is"), rows)], 0


def main() -> None:
    """The `prune` command: exits with 0 done, 2 the user's mistake in one line, 130 Ctrl-C, 1 anything else."""
    from prune.interrupt import end_on_interrupt

    sys.excepthook = _one_line
    end_on_interrupt(_how_to_resume(sys.argv[1:]))
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Runs one command line; gives the exit code. Errors that are not the user's are raised."""
    try:
        code = cli.main([*arguments], prog_name="prune", standalone_mode=False)
        sys.stdout.flush()
    except (PruneError, click.ClickException) as error:
        if os.environ.get(DEBUG) == "1":
            raise
        print(f"prune: {_in_one_line(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has gone; what is left must not be flushed into the closed pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code if isinstance(code, int) else 0


def _in_one_line(error: PruneError | click.ClickException) -> str:
    from prune.report.table import clean

    text = error.format_message() if isinstance(error, click.ClickException) else str(error)
    return clean(" ".join(text.split()))


def _one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """For errors that are ours: Python exits with 1 after calling this."""
    if os.environ.get(DEBUG) == "1":
        sys.__excepthook__(kind, error, trace)
        return
    text = " ".join(str(error).split())[:500]
    print(f"prune: {kind.__name__}: {text} (set {DEBUG}=1 for the traceback)", file=sys.stderr)


def _how_to_resume(arguments: Sequence[str]) -> str:
    if arguments[:1] != ["apply"] or "--dry-run" in arguments:
        return "prune: interrupted"
    again = shlex.join(["prune", *(word for word in arguments if word != "--restart")])
    return f"prune: interrupted; finished steps are kept, this goes on from there: {again}"
