"""The output folder of a run: whether it may be written, whether it is there already, and how it is put together."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

from prune import files
from prune.document import parse
from prune.errors import PruneError
from prune.recipe.keys import FORMAT, versions
from prune.recipe.load import Recipe
from prune.recipe.work import Done, plain
from prune.report.card import card
from prune.report.page import report


def refuse(target: Path, model: str) -> None:
    """PruneError when `target` can never be the output: not ours, a file, the model itself, or not writable."""
    files.refuse_occupied(target, overwrite=True)
    source = Path(model).resolve()
    if source.is_dir() and (target == source or target in source.parents or source in target.parents):
        raise PruneError("the output may not be the model's own folder, around it or inside it", where=str(target))
    standing = next(parent for parent in target.parents if parent.exists())
    if not standing.is_dir() or not os.access(standing, os.W_OK):
        raise PruneError("cannot be written: the folder it stands in is not writable", where=str(target))


def refuse_other(target: Path, recipe: Recipe, device: str, reads: list[dict[str, Any]], *, restart: bool) -> None:
    """PruneError when an output of ours stands at `target` that, as far as is known unhashed, another run made."""
    if not files.is_ours(target):
        return
    found = files.manifest(target)
    steps, now = found.get("steps", []), plain([(step.word, step.bound) for step in recipe.steps])
    pairs = {
        "recipe": ([[step["word"], step["options"]] for step in steps], now),
        "input": ([step["inputs"] for step in steps], plain(reads)),
        "version": (found.get("versions"), versions()),
        "seed": (found.get("seed"), recipe.seed),
        "dtype": (found.get("dtype"), recipe.dtype),
        "device": (found.get("device"), device),
    }
    other = [name for name, (before, after) in pairs.items() if before != after]
    if other or restart:
        why = f" and was made from another {', '.join(other)}" if other else ""
        raise PruneError(f"exists{why}; --overwrite replaces it", where=str(target))


def remarks(
    target: Path, recipe: Recipe, device: str, reads: list[dict[str, Any]], *, overwrite: bool, restart: bool
) -> list[str]:
    """What a run would say of an output that stands at `target` already, as far as is known unhashed."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return []
    try:
        refuse(target, recipe.model)
        if overwrite:
            return [f"{target}: exists, and --overwrite will replace it unless it is what this recipe makes"]
        refuse_other(target, recipe, device, reads, restart=restart)
    except PruneError as error:
        return [str(error)]
    return [f"{target}: exists; if it is what this recipe makes, there is nothing to do"]


def refuse_full_disk(target: Path, expected: list[dict[str, Any]]) -> None:
    """PruneError when what all steps will write (`needs` in the records of a dry run) will not fit on the disk."""
    needed = sum(step["record"].get("needs", {}).get("disk", 0) for step in expected)
    standing = next(parent for parent in target.parents if parent.exists())
    free = shutil.disk_usage(standing).free
    if needed > free:
        raise PruneError(f"needs {needed / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free", where=str(target))


def standing(target: Path, key: str, *, overwrite: bool, restart: bool) -> dict[str, Any] | None:
    """The manifest of an output that is already what this run would make, every file of it; None when there is none.

    PruneError when something else stands there that may not be replaced.
    """
    if not files.is_ours(target):
        files.refuse_occupied(target, overwrite=overwrite)
        return None
    found = files.manifest(target)
    if found.get("key") == key and not restart:
        problems = files.verify(target)
        if not problems:
            return found
        if not overwrite:
            raise PruneError(
                f"was changed since it was made ({problems[0]}); --overwrite makes it again", where=str(target)
            )
    if not overwrite:
        why = "" if restart else " and was made from another recipe, input or version"
        raise PruneError(f"exists{why}; --overwrite replaces it", where=str(target))
    return None


def manifest(
    recipe: Recipe, key: str, device: str, model: dict[str, str], reads: list[dict[str, Any]], finished: list[Done]
) -> dict[str, Any]:
    """What prune.json says, but for the table of files: enough to make the output again."""
    steps = [
        {"word": done.word, "options": done.options, "key": done.key, "inputs": read, "record": done.record}
        | {"warnings": done.warnings + _overtaken(done, finished[position + 1 :])}
        for position, (done, read) in enumerate(zip(finished, reads, strict=True))
    ]
    return {
        "format": files.MARK,
        "format_version": FORMAT,
        "key": key,
        # Where the output stands is left out: the same recipe gives the same bytes anywhere.
        "recipe": {name: value for name, value in plain(recipe.given).items() if name != "output"},
        "model": {"source": recipe.model, "revision": recipe.revision, "files": model},
        "seed": recipe.seed,
        "device": device,
        "dtype": recipe.dtype,
        "versions": versions(),
        "steps": steps,
    }


def _overtaken(done: Done, later: list[Done]) -> list[str]:
    if done.artefacts and not done.checkpoint and any(after.checkpoint for after in later):
        return [f"{done.artefacts[0]} was made before a later step changed the model, so it is of another model"]
    return []


def assemble(staging: Path, finished: list[tuple[Path, Done]]) -> dict[str, str]:
    """Fills the staged output with the last checkpoint and every step's artefacts; the table of their hashes.

    A link is the file whose hash is known; a copy is read again.
    """
    holder = last_checkpoint([done for _, done in finished])
    table = {}
    for position, (folder, done) in enumerate(finished):
        for name in done.files if position == holder else done.artefacts:
            linked = files.link_or_copy(folder / name, staging / name)
            table[name] = done.files[name]
            if not linked and files.sha256(staging / name) != table[name]:
                raise OSError(f"the disk gave back other bytes than were written to {staging / name}")
    return table


def last_checkpoint(finished: list[Done]) -> int | None:
    """The position of the last step that changed the model."""
    return max((position for position, done in enumerate(finished) if done.checkpoint), default=None)


def exported(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The options of those steps that wrote an export, each with its `folder` in the output."""
    return [step["options"] | {"folder": step["record"]["folder"]} for step in steps if "folder" in step["record"]]


def seal(
    staging: Path, content: dict[str, Any], table: dict[str, str], timings: list[dict], licence: str | None
) -> None:
    """Adds the model card, the report, the timings with its hashes, and last the manifest with those of all others."""
    source = content["model"]["source"]
    on_hub = source != "bundled" and not Path(source).exists()
    config = files.read_json(staging / "config.json")
    text = card(
        content,
        model_type=config.get("model_type", ""),
        base_model=source if on_hub else None,
        licence=licence,
        architectures=config.get("architectures") or (),
    )
    (staging / "README.md").write_text(text, encoding="utf-8")
    content = content | {"files": table | {"README.md": files.sha256(staging / "README.md")}}
    drawn = files.write_report(staging, report(content, timings))
    files.write_json(staging / files.TIMINGS, {"steps": timings, "report": drawn})
    files.write_json(staging / files.MANIFEST, content)


def licence_of(folder: Path) -> str | None:
    """The licence that the model card in a folder states, if it is there and plain."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
        front = re.match(r"---\n(.*?\n)---", text, re.DOTALL)
        stated = parse(front[1], "README.md").value.get("license") if front else None
    except (OSError, UnicodeDecodeError, PruneError):
        return None
    return stated if isinstance(stated, str) and re.fullmatch(r"[\w.+-]+", stated) else None
