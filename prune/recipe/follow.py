"""What a process other than the first does in a step: the same call on the same model, its result left to the first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prune.document import Document
from prune.progress import Progress
from prune.recipe.load import load
from prune.recipe.processes import taking_part
from prune.run import Run


def take_part(message: dict[str, Any], parts: Any) -> None:
    """One step, as the first process described it; `parts` are those of the loop."""
    recipe = load(Document("recipe", message["recipe"]), parts.words)
    step = recipe.steps[message["position"]]
    original = parts.open(recipe.model, revision=recipe.revision, headers=False)
    model = original if message["model"] is None else parts.open(message["model"], revision=None, headers=False)
    processes, local = taking_part(1)
    run = Run(
        model=model,
        original=original,
        seed=recipe.seed,
        device=message["device"],
        dtype=recipe.dtype,
        calibration=recipe.calibration,
        dry=False,
        folder=Path(message["folder"]),
        unfinished=Path(message["unfinished"]),
        progress=Progress(quiet=True),
        number=len(message["earlier"]) + 1,
        processes=processes,
        local=local,
        earlier=tuple(message["earlier"]),
    )
    step.function(run, **step.options)
