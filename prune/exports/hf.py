"""`hf`: a checkpoint whose layers differ, in a form that loads without prune: with its code, or in Deci's words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from prune import files
from prune.errors import PruneError
from prune.exports.checkpoints import deci
from prune.exports.job import Job
from prune.model.checkpoint import write_folder
from prune.model.companions import content
from prune.model.model import Model


def export(job: Job, *, as_: Literal["deci"]) -> dict[str, Any]:
    """A checkpoint in a form that loads without `prune`, though its layers differ.

    as: `deci` states the layers as vLLM's and llama.cpp's Deci readers want them, with zeros where they must be wider.
    """
    model, found = job.model, deci.deci(job.model)
    files.write_json(job.folder / "config.json", deci.config(model, found))
    (job.folder / deci.FILE).write_text(deci.CODE, encoding="utf-8")
    for name, path in model.files.items():
        (job.folder / name).write_bytes(content(path))
    view = deci.tensors(model, found)
    _compared(job.folder, write_folder(view, job.folder))
    added = f"{view.parameters - model.tensors.parameters} of {view.parameters} parameters are zeros that fill up"
    return {
        "format": "hf",
        "as": as_,
        "heads": found.heads,
        "files": {name: (job.folder / name).stat().st_size for name in files.names(job.folder)},
        "warnings": [*found.notes, added] if view.parameters > model.tensors.parameters else [*found.notes],
    }


def check(model: Model, **_: Any) -> str | None:
    """Why a model cannot be carried, or None when it can; reads no weights."""
    try:
        deci.deci(model)
    except PruneError as error:
        return error.message
    return None


def _compared(folder: Path, written: Mapping[str, str]) -> None:
    for name, digest in written.items():
        if files.sha256(folder / name) != digest:
            raise PruneError("the disk gave back other bytes than were written", where=str(folder / name))
