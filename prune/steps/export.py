"""`export`: write the model in a format that others serve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prune import forecast
from prune.errors import PruneError
from prune.exports.export import exporter, publishes, refuse, streams
from prune.exports.export import write as write_export
from prune.exports.job import Job
from prune.model.model import Model
from prune.run import Run
from prune.steps._common import calibration_batches


def export(run: Run, *, format: str = "onnx", **options: Any) -> None:
    """Write the model in a format that others serve, beside the checkpoint, checked against PyTorch.

    It goes to a folder of the output named after the format and what is asked of it: `onnx`, `onnx-int8`,
    `onnx-int8-static`, `hf-code`, `hf-deci`.

    format: one of those below, each with options of its own that stand beside it.
    """
    if publishes(format):
        refuse(run.model, format, options, calibrated=True)
        run.record.update(exporter(format)(Job(run.model, run.folder), **options))
        return
    folder = place(format, options)
    run.record["folder"] = folder
    if run.dry:
        refuse(run.model, format, options, calibrated=run.calibration is not None)
        _refuse_taken(folder, run.earlier)
        run.record["needs"] = _needs(run.model, format)
        return
    text = (lambda: calibration_batches(run)) if run.calibration else None
    job = Job(run.model, run.folder / folder, run.progress, text, run.seed)
    found = write_export(job, format=format, **options)
    run.warnings += found.pop("warnings", [])
    run.record.update(found)


def place(format: str, options: Mapping[str, Any]) -> str:
    """The folder of the output that an export goes to."""
    words = [options.get("dtype"), options.get("as_") or options.get("as")]
    words += [name for name in ("static", "code") if options.get(name)]
    return "-".join([format, *(str(word) for word in words if word)])


def _refuse_taken(folder: str, earlier: Sequence[Mapping[str, Any]]) -> None:
    for number, record in enumerate(earlier, 1):
        if record.get("folder") == folder:
            raise PruneError(
                f"step {number} exports to {folder}/ too, and this one would take its place; `prune export` writes one"
                " to a folder of its own",
                where="format",
            )


def _needs(model: Model, format: str) -> dict[str, float]:
    if streams(format):
        return forecast.streaming(model)
    return forecast.whole(model, copies=4, tokens=0, device="cpu", disk=4.0 * model.tensors.parameters)


def _more(given: Mapping[str, Any]) -> Any:
    """The function that takes the format's own options."""
    return exporter(given.get("format", "onnx"))


export.more = _more  # type: ignore[attr-defined]
