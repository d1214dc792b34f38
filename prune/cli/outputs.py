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
    count = len(files.manifest(out)["files"] | files.reported(out))
    said = [f"{out}/{problem}" for problem in problems] or [f"{out}: {count} files, all as they were written"]
    return {"files": count, "problems": problems}, said, 1 if problems else 0


@command
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("repo")
@click.option("--public", is_flag=True, help="Everybody may see it; private when left out.")
@click.option("--revision", help="The branch to send to; the main one when left out.")
@click.option("--dry-run", is_flag=True, help="Only say what would be sent.")
def push(out: Path, repo: str, *, public: bool, revision: str | None, dry_run: bool, progress: Progress) -> Shown:
    """Send OUT, its card included, to REPO (owner/name) on the Hugging Face Hub, with the token in HF_TOKEN."""
    from prune.errors import PruneError
    from prune.exports import hub
    from prune.report import summary

    if why := hub.check(None, repo=repo):
        raise PruneError(why, where="repo")
    sizes = hub.sent(out)
    if dry_run:
        shown = summary.exported({"files": sizes}, out)[:-1]
        return {"repo": repo, "files": sizes}, [*shown, f"nothing was sent; without --dry-run: to {repo}"], 0
    with progress.track(f"sending to {repo}"):
        found = hub.publish(out, repo=repo, private=not public, revision=revision)
    return found | {"files": sizes}, [f"sent: {found['url']}"], 0
