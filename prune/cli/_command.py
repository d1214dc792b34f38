"""What every command is made with. Heavy imports stay inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

import prune

if TYPE_CHECKING:
    from prune.report.table import Table

DEVICES = click.Choice(["auto", "cpu", "cuda"])
DTYPES = click.Choice(["auto", "float32", "bfloat16", "float16"])


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
