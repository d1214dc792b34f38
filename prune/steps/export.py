"""`export`: write the model in a format that others serve."""

from __future__ import annotations

from typing import Literal

from prune import forecast
from prune.exports.export import refuse
from prune.exports.export import write as write_export
from prune.run import Run


def export(run: Run, *, format: Literal["onnx"] = "onnx") -> None:
    """Write the model in a format that others serve, beside the checkpoint, checked against PyTorch.

    format: `onnx`, one graph with key-value cache under Optimum's names, run in ONNX Runtime.
    """
    if run.dry:
        refuse(run.model, format)
        parameters = run.model.tensors.parameters
        run.record["needs"] = forecast.whole(run.model, copies=4, tokens=0, device="cpu", disk=4.0 * parameters)
    else:
        run.record.update(write_export(run.model, run.folder / format, format=format, progress=run.progress))


export.calibrated = False  # type: ignore[attr-defined]
