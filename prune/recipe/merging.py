"""`prune merge CONFIG OUT`: from a merge config to a folder that appears whole or not at all, with a report."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from prune import files
from prune.errors import PruneError
from prune.merging import chart
from prune.merging.config import Config
from prune.merging.inputs import folder as folder_of
from prune.merging.merge import Merged, needs, prepare, refuse_too_large
from prune.model.memory import release
from prune.model.save import write
from prune.progress import Progress
from prune.recipe.keys import FORMAT, versions
from prune.recipe.output import seal

MODELS = ("model", "base_model", "lora", "path", "tokenizer_source", "source")  # keys of a config that may name one


def merge(
    config: str | Path,
    folder: str | Path,
    *,
    seed: int | None = None,
    compat: Literal["mergekit"] | None = None,
    device: str = "cpu",
    report: bool = True,
    dry_run: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Merge as a config file says and write the result; gives what prune.json keeps of it.

    `report` measures what happens to each layer, and adds the page, the card, and merge/layers.csv and layers.svg; a
    `dry_run` ends after the checks. Raises PruneError, before a tensor is read, for whatever is known to be wrong,
    memory and disk included.
    """
    target = Path(folder).resolve()
    release()  # what importing left behind, or it counts on top of the merge
    merged = prepare(config, seed=seed, compat=compat, device=device, profile=report, headers=dry_run)
    _refuse_full(merged, target)
    found: dict[str, Any] = {
        "merge": merged.record,
        "parameters": merged.model.tensors.parameters,
        "bytes": merged.model.tensors.bytes,
        "saved_as": merged.model.config.model_type,
        "architecture": merged.model.architecture.__name__,
        "needs": needs(merged),
        "warnings": merged.plan.warnings,
    }
    if dry_run:
        return found
    progress = progress or Progress(quiet=True)
    began = time.perf_counter()
    with files.staged(target, overwrite=overwrite) as staging, progress.track(f"merging into {folder}"):
        table = write(merged.model, staging)
        if merged.profile is not None:
            merged.record["layers"] = rows = merged.profile.rows()
            for path in chart.write(rows, staging / "merge") if rows else ():
                table[path.relative_to(staging).as_posix()] = files.sha256(path)
        content = _content(merged, found, seed=merged.plan.seed, device=device)
        timings = [{"seconds": time.perf_counter() - began}]
        if report:
            seal(staging, content, table, timings, None)
        else:
            files.write_json(staging / files.TIMINGS, {"steps": timings})
            files.write_json(staging / files.MANIFEST, content | {"files": table})
    return found


def _content(merged: Merged, found: dict[str, Any], *, seed: int, device: str) -> dict[str, Any]:
    """What prune.json says: what a recipe of this one step would, so that the same page can be drawn from it."""
    value = merged.config.document.value
    options = {
        name: _found(given, merged.config, name) for name, given in value.items() if name not in ("name", "random_seed")
    }
    if merged.record["compat"]:
        options["compat"] = merged.record["compat"]
    source = folder_of((merged.config.base or merged.plan.inputs[0]).model, merged.config)
    kept = ("merge", "parameters", "bytes", "saved_as", "architecture")
    donor = merged.plan.donor.tensors
    record = {name: found[name] for name in kept}
    record |= {"parameters": [donor.parameters, found["parameters"]], "bytes": [donor.bytes, found["bytes"]]}
    named = {name: _found(record["merge"][name], merged.config, "model") for name in ("inputs", "base")}
    record["merge"] = {**record["merge"], **named}
    step = {"word": "merge", "options": options, "record": record, "warnings": found["warnings"]}
    return {
        "format": files.MARK,
        "format_version": FORMAT,
        "recipe": {"model": source, "seed": seed, "steps": [{"merge": options}]},
        "model": {"source": source},
        "seed": seed,
        "device": device,
        "versions": versions(),
        "steps": [step],
    }


def _found(value: Any, config: Config, key: str = "") -> Any:
    """A part of a config whose models, named from beside its file, are named from here: a recipe has no such file."""
    if isinstance(value, Mapping):
        return {name: _found(inner, config, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_found(inner, config, key) for inner in value]
    word = key in ("tokenizer_source", "source") and value in ("union", "base")
    return _spelt(value, config) if key in MODELS and isinstance(value, str) and not word else value


def _spelt(value: str, config: Config) -> str:
    """`path`, `path@revision` or `path+adapter` with its folders as they are found from here."""
    ends = [value] if Path(value).exists() or folder_of(value, config) != value else value.split("+")
    parts = [end.partition("@") if folder_of(end, config) == end else (end, "", "") for end in ends]
    return "+".join(f"{folder_of(path, config)}{at}{revision}" for path, at, revision in parts)


def _refuse_full(merged: Merged, target: Path) -> None:
    refuse_too_large(merged)
    standing = next(parent for parent in target.parents if parent.exists())
    needed, free = needs(merged)["disk"], shutil.disk_usage(standing).free
    if needed > free:
        raise PruneError(f"needs {needed / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free", where=str(target))
