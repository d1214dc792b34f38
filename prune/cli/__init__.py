"""The command line: each command is a few lines around a call of the API, in the file of what it takes."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from prune.cli import merging, models, outputs, recipes, reporting, start, synthesis  # noqa: F401 - their commands are the group's
from prune.cli._command import cli
from prune.errors import PruneError

if TYPE_CHECKING:
    from types import TracebackType

DEBUG = "PRUNE_DEBUG"


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
    if arguments[:1] not in (["apply"], ["synthesize"], ["upscale"]) or "--dry-run" in arguments:
        return "prune: interrupted"
    again = shlex.join(["prune", *(word for word in arguments if word != "--restart")])
    kept = "finished steps are" if arguments[0] != "synthesize" else "what was answered is"
    return f"prune: interrupted; {kept} kept, this goes on from there: {again}"
