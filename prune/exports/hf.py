"""`hf`: a checkpoint whose layers differ, in a form that loads without prune: with its code, or in Deci's words."""

from __future__ import annotations

from typing import Any, Literal

from prune import files
from prune.errors import PruneError
from prune.exports.checkpoints import code as codes
from prune.exports.checkpoints import deci
from prune.exports.job import Job
from prune.model import save
from prune.model.checkpoint import write_folder
from prune.model.companions import content
from prune.model.model import Model

STREAMS = True  # one tensor in memory at a time


def export(job: Job, *, code: bool = False, as_: Literal["deci"] | None = None) -> dict[str, Any]:
    """A checkpoint that loads without `prune`, though its layers differ. One of the options is needed.

    code: write a modelling file beside the weights, so that transformers loads them with `trust_remote_code=True`.
    as: `deci` states the layers as vLLM's and llama.cpp's Deci readers want them, with zeros where they must be wider.
    """
    found = {"deci": _as_deci, None: _with_code}[as_](job)
    assert code == (as_ is None)
    sizes = {name: (job.folder / name).stat().st_size for name in files.names(job.folder)}
    return {"format": "hf", **found, "files": sizes}


def check(model: Model, *, code: bool = False, as_: str | None = None) -> str | None:
    """Why a model cannot be carried, or None when it can; reads no weights."""
    if code == bool(as_):
        return "format hf needs one of `code: true` and `as: deci`; the checkpoint itself is what every recipe writes"
    if code:
        return "stock transformers loads this model without code of ours" if model.uniform else None
    try:
        deci.deci(model)
    except PruneError as error:
        return error.message
    return None


def _with_code(job: Job) -> dict[str, Any]:
    """The checkpoint as it is, a modelling file, and what leads transformers to it."""
    save.write(job.model, job.folder)
    config = files.read_json(job.folder / "config.json")
    files.write_json(job.folder / "config.json", config | {"auto_map": codes.auto_map(job.model)})
    (job.folder / codes.FILE).write_text(codes.modelling(job.model), encoding="utf-8")
    return {"code": True}


def _as_deci(job: Job) -> dict[str, Any]:
    model, found = job.model, deci.deci(job.model)
    files.write_json(job.folder / "config.json", deci.config(model, found))
    (job.folder / deci.FILE).write_text(deci.CODE, encoding="utf-8")
    for name, path in model.files.items():
        (job.folder / name).write_bytes(content(path))
    view = deci.tensors(model, found)
    write_folder(view, job.folder)
    more = view.parameters - model.tensors.parameters
    notes = [*found.notes, *([f"{more} of {view.parameters} parameters are zeros that fill up"] if more else [])]
    return {"as": "deci", "heads": found.heads, **({"warnings": notes} if notes else {})}
