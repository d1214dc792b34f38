"""`prune synthesize CONFIG`: the recipe word `synthesize` with a config of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prune import files
from prune.errors import PruneError
from prune.measure import compute_dtype
from prune.progress import Progress, silenced
from prune.recipe.alone import alone
from prune.recipe.loop import pick_device
from prune.steps.synthesize import synthesize as step
from prune.synthesis.settings import settings
from prune.synthesis.synthesize import check
from prune.synthesis.synthesize import synthesize as write
from prune.synthesis.writers import make


def synthesize(
    config: str | Path | dict,
    *,
    output: str | Path | None = None,
    device: str | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Runs a config, and gives what was kept, rejected and covered, the output's name, and `state`.

    With `dry_run` it stops after the checks. PruneError with its place in the config for what the user can mend.
    """
    found = alone(config, step)
    options = {name: value for name, value in found.options.items() if name not in ("seeds", "writer")}
    seeds, writer = found.options["seeds"], found.options["writer"]
    target = output or found.around.output
    if target is None:
        raise PruneError("output is missing: name it in the config or with --output", where=found.document.name)
    try:
        made = settings({**options, "seed": found.around.seed})
        check(made, seeds)
        make.check(writer, made)
        if dry_run:
            files.refuse_occupied(Path(target), overwrite=True)
            return {"output": str(target), "state": "checked"}
        place = pick_device(device or found.around.device)
        with silenced():
            record = write(
                target,
                seeds=seeds,
                writer=writer,
                overwrite=overwrite,
                device=place,
                dtype=compute_dtype(place, found.around.dtype),
                progress=progress,
                seed=found.around.seed,
                **options,
            )
    except PruneError as error:
        raise found.blame(error) from error
    return {"output": str(target), **record}
