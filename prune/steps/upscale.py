"""`upscale`: grow a model by stacking its own layers."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

from prune import forecast
from prune.errors import PruneError
from prune.merging.layers import upscale as grow
from prune.run import Run
from prune.steps._common import Count


def upscale(
    run: Run,
    *,
    drop: Count | None = None,
    layers: Annotated[list[str], Field(min_length=1)] | None = None,
    expand: str | None = None,
) -> None:
    """Grow the model by stacking its own layers; training is to follow, except after `expand`, which changes no logit.

    drop: two copies, the first without its last so many layers, the second without as many of its first (SOLAR: 8 of
        32 make 48).
    layers: these runs of layers, both ends included, one upon the other, as in `[0-23, 8-31]`.
    expand: `every 4` puts after every fourth layer a copy that adds nothing (LLaMA Pro).
    """
    before = run.model
    runs = [_run(text) for text in layers] if layers is not None else None
    run.model = grow(before, drop=drop, layers=runs, expand=_every(expand) if expand is not None else None)
    run.record.update(
        layers=[before.numbers["layers"], run.model.numbers["layers"]],
        parameters=[before.tensors.parameters, run.model.tensors.parameters],
        bytes=[before.tensors.bytes, run.model.tensors.bytes],
        saved_as=run.model.config.model_type,
        architecture=run.model.architecture.__name__,
    )
    if run.dry:
        run.record["needs"] = forecast.writing(run.model)


upscale.calibrated = False  # type: ignore[attr-defined]


def _run(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", text)
    if not found:
        raise PruneError(f"a run of layers is spelt 0-23, not {text!r}", where="layers")
    first, last = int(found[1]), int(found[2] or found[1])
    return first, last + 1


def _every(text: str) -> int:
    found = re.fullmatch(r"every\s+(\d+)", text)
    if not found:
        raise PruneError(f"expand is spelt `every 4`, not {text!r}", where="expand")
    return int(found[1])
