"""What several steps need: how options are spelt, where a room computes, and the recipe's calibration text."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from pydantic import Field

from prune import labels
from prune.measure import compute_dtype
from prune.model.walk import Batch
from prune.run import Run, of_calibration

Ratio = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[int, Field(ge=1)]


def place(run: Run) -> dict[str, Any]:
    """Where and how a room computes."""
    return {"device": run.device, "dtype": compute_dtype(run.device, run.dtype), "progress": run.progress}


def given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def calibration_batches(run: Run) -> list[Batch]:
    """The recipe's calibration data as batches: text, with words masked for a model of those, or labelled examples."""
    chosen = run.calibration
    assert chosen is not None
    with of_calibration():
        return labels.calibration(run.model, **asdict(chosen), seed=run.seed)
