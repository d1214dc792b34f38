"""A merge from its config to a folder that appears whole or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

from prune import files
from prune.errors import PruneError
from prune.merging import chart
from prune.merging.merge import Merged, needs, prepare, refuse_too_large
from prune.model.save import write
from prune.progress import Progress


def written(
    config: str | Path,
    folder: str | Path,
    *,
    seed: int | None = None,
    compat: Literal["mergekit"] | None = None,
    device: str = "cpu",
    report: bool = False,
    dry_run: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Merge as a config file says and write the result; gives what prune.json keeps of it.

    `report` adds merge/layers.csv and layers.svg; a `dry_run` ends after the checks. Raises PruneError, before a tensor
    is read, for whatever is known to be wrong, memory and disk included.
    """
    target = Path(folder).resolve()
    merged = prepare(config, seed=seed, compat=compat, device=device, profile=report, headers=dry_run)
    _refuse_full(merged, target)
    found: dict[str, Any] = {
        "merge": merged.record,
        "parameters": merged.model.tensors.parameters,
        "bytes": merged.model.tensors.bytes,
        "saved_as": merged.model.config.model_type,
        "needs": needs(merged),
        "warnings": merged.plan.warnings,
    }
    if dry_run:
        return found
    progress = progress or Progress(quiet=True)
    with files.staged(target, overwrite=overwrite) as staging, progress.track(f"merging into {folder}"):
        table = write(merged.model, staging)
        if merged.profile is not None:
            merged.record["layers"] = merged.profile.rows()
            for path in chart.write(merged.record["layers"], staging / "merge"):
                table[path.relative_to(staging).as_posix()] = files.sha256(path)
        content = {"format": files.MARK, "files": table, "source": merged.model.source, "merge": merged.record}
        files.write_json(staging / files.MANIFEST, {**content, "config": dict(merged.config.document.value)})
    return found


def _refuse_full(merged: Merged, target: Path) -> None:
    refuse_too_large(merged)
    standing = next(parent for parent in target.parents if parent.exists())
    needed, free = needs(merged)["disk"], shutil.disk_usage(standing).free
    if needed > free:
        raise PruneError(f"needs {needed / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free", where=str(target))
