"""Commands to begin with: what there is, and a recipe to start from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from prune.cli._command import Shown, command

if TYPE_CHECKING:
    from prune.progress import Progress


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
