"""One call for every export format."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from prune import files
from prune.errors import PruneError, unknown
from prune.exports import formats
from prune.model.model import Model
from prune.model.save import load
from prune.progress import Progress


def export(
    model: Model,
    folder: str | Path,
    *,
    format: str = "onnx",
    overwrite: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Write an opened model to `folder` in a format that others serve, with a prune.json of the files' hashes.

    The folder appears whole or not at all; one that prune made is replaced with `overwrite`. Gives the format's
    record: its files with their bytes, and how it compares with PyTorch. `options` are the format's own. Raises
    PruneError for an occupied folder, an unknown format, an architecture it cannot carry, or results that differ.
    """
    refuse(model, format)
    with files.staged(folder, overwrite=overwrite) as staging:
        found = write(model, staging, format=format, progress=progress, **options)
        said = {"format": files.MARK, "export": format, "model": {"source": model.source}}
        files.write_json(staging / files.MANIFEST, said | {"files": files.hashes(staging)})
    return found


def write(
    model: Model, folder: str | Path, *, format: str, progress: Progress | None, **options: Any
) -> dict[str, Any]:
    """The export alone, into a missing or empty folder; see `export`."""
    refuse(model, format)
    module = load(model, dtype=torch.float32)
    tokenizer = model.tokenizer() if any(name.startswith("tokenizer") for name in model.files) else None
    found: dict[str, Any] = _format(format).export(module, tokenizer, folder, progress=progress, **options)
    return found


def refuse(model: Model, format: str) -> None:
    """PruneError when the format does not exist or cannot carry the model; reads no weights."""
    reason = _format(format).check(model.config)
    if reason:
        raise PruneError(reason, where="format")


def _format(name: str) -> Any:
    if name not in formats():
        raise unknown("export format", name, formats())
    return importlib.import_module(f"prune.exports.{name}")
