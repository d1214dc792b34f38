"""One call for every export format."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from prune import files
from prune.errors import PruneError, unknown
from prune.exports import formats
from prune.exports.job import Job
from prune.model.model import Model
from prune.model.walk import Batch
from prune.options import arguments, check_options, spelt
from prune.progress import Progress


def export(
    model: Model,
    folder: str | Path,
    *,
    format: str = "onnx",
    overwrite: bool = False,
    progress: Progress | None = None,
    calibration: list[Batch] | None = None,
    seed: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """Write an opened model to `folder` in a format that others serve, with a prune.json of the files' hashes.

    The folder appears whole or not at all; one that prune made is replaced with `overwrite`. `options` are the format's
    own (docs/recipe.md lists them); `calibration` are token batches for those that look at data. Gives the format's
    record: its files with their bytes, and how it compares with PyTorch. Raises PruneError for an occupied folder, an
    unknown format or option, an architecture it cannot carry, or results that differ.
    """
    options = {spelt(name): value for name, value in options.items()}
    refuse(model, format, options, calibrated=calibration is not None)
    if publishes(format):
        raise PruneError(
            f"{format} sends the finished output of a run; `prune push OUT REPO` sends one", where="format"
        )
    with files.staged(folder, overwrite=overwrite) as staging:
        text = None if calibration is None else lambda: calibration
        job = Job(model, staging, progress or Progress(quiet=True), text, seed)
        found = exporter(format)(job, **arguments(options))
        said = {"format": files.MARK, "export": format, "options": options, "model": {"source": model.source}}
        files.write_json(staging / files.MANIFEST, said | {"files": files.hashes(staging)})
    return found


def write(job: Job, *, format: str, **options: Any) -> dict[str, Any]:
    """The export alone, into a missing or empty `job.folder`, whole or not at all; see `export`."""
    refuse(job.model, format, options, calibrated=job.calibration is not None)
    with files.staged(job.folder) as staging:
        found: dict[str, Any] = exporter(format)(
            Job(job.model, staging, job.progress, job.calibration, job.seed), **arguments(options)
        )
    return found


def refuse(model: Model, format: str, options: Mapping[str, Any], *, calibrated: bool) -> None:
    """PruneError when the format or an option does not exist, lacks calibration text, or cannot carry the model.

    Reads no weights.
    """
    check_options(exporter(format), options, of=f"format {format}")
    if why := reason(model, format, options):
        raise PruneError(why, where="format")
    for name in getattr(_module(format), "LOOKS_AT_DATA", ()):
        if options.get(name) and not calibrated:
            raise PruneError(f"{name} looks at data; give the recipe a calibration", where=name)


def reason(model: Model, format: str, options: Mapping[str, Any] | None = None) -> str | None:
    """Why a format cannot carry a model, or None when it can; reads no weights."""
    found: str | None = _module(format).check(model, **arguments(options or {}))
    return found


def publishes(format: str) -> bool:
    """Whether a format sends the run's finished output instead of writing files of its own."""
    return bool(getattr(_module(format), "PUBLISHES", False))


def streams(name: str) -> bool:
    """Whether a format rewrites tensors one by one, and never holds the model."""
    return bool(getattr(_module(name), "STREAMS", False))


def exporter(name: object) -> Callable[..., dict[str, Any]]:
    """The `export` of a format, whose keyword arguments are its options. PruneError with the choices."""
    found: Callable[..., dict[str, Any]] = _module(name).export
    return found


def _module(name: object) -> ModuleType:
    if name not in formats():
        raise unknown("export format", name, formats()).at("format")
    return importlib.import_module(f"prune.exports.{name}")
