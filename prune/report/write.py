"""Reports of outputs that stand on the disk: one drawn again in its place, or several on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prune import files
from prune.errors import PruneError
from prune.report.compare import comparison, entry
from prune.report.page import report

GENERATOR = b'<meta name="generator" content="prune report">'  # as templates/base.html has it


def again(out: Path) -> Path:
    """Draws an output's report from its prune.json and timings.json: the same bytes as before by the same version.

    Raises PruneError when `out` is not an output of prune.
    """
    manifest, timings = _read(out)
    files.replace_report(out, report(manifest, timings["steps"]), timings)
    return out / files.REPORT / "index.html"


def compared(outs: Sequence[Path], page: Path, *, overwrite: bool = False) -> Path:
    """Writes one page that compares outputs, in the place of an earlier one.

    Raises PruneError when an output is not ours, or something else stands in the page's place (with `overwrite`, only
    for a folder).
    """
    read = [_read(out) for out in outs]
    if page.is_dir() or (page.exists() and not overwrite and not _is_page(page)):
        other = "is a folder" if page.is_dir() else "exists and is no page of ours; --overwrite replaces it"
        raise PruneError(f"{other}; choose another --output", where=str(page))
    text = comparison([entry(name, m, t["steps"]) for name, (m, t) in zip(_names(outs), read, strict=True)])
    files.make(page.resolve().parent)
    part = page.with_name(f".{page.name}.part")
    part.write_text(text, encoding="utf-8", newline="")
    part.replace(page)
    return page


def _is_page(page: Path) -> bool:
    """Whether `prune report` wrote this file."""
    with page.open("rb") as file:
        return GENERATOR in file.read(4096)


def _read(out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    manifest = files.manifest(out)
    if "recipe" not in manifest:
        raise PruneError("was not made by a recipe, so there are no steps to report", where=str(out))
    timings = files.read_json(out / files.TIMINGS) if (out / files.TIMINGS).is_file() else {}
    steps = timings.get("steps")
    return manifest, timings | {"steps": steps if isinstance(steps, list) else [{} for _ in manifest.get("steps", [])]}


def _names(outs: Sequence[Path]) -> list[str]:
    """The folders' names, or the whole paths where two are the same."""
    short = [out.resolve().name for out in outs]
    return short if len(set(short)) == len(short) else [str(out) for out in outs]
