"""What a step's result depends on, as one key: the same key means the same bytes, so the step need not run again."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import prune
from prune import files
from prune.errors import PruneError
from prune.recipe.load import Recipe, Step

FORMAT = 1  # of prune.json and of the step folders; another number makes every key another
# What computes, what proposes and chooses, what cuts text into tokens and reads it, and what writes files.
_DECIDE = (
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "safetensors",
    "numpy",
    "scipy",
    "accelerate",
    "peft",
    "trl",
    "cma",
    "lm_eval",
    "datasketch",
    "torch-pruning",
    "gguf",
    "onnx",
    "onnxscript",
    "onnxruntime",
)
Fingerprint = Callable[..., str]  # (data source, split=) -> what tells its bytes from others


def versions() -> dict[str, str]:
    """The versions that decide what comes out."""
    found = {"prune": prune.__version__, "python": platform.python_version()}
    for name in _DECIDE:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


@cache
def own_source() -> str:
    """A digest of prune's own code: between two releases a change of it is a change of version too."""
    folder = Path(prune.__file__).parent
    return digest({str(path.relative_to(folder)): files.sha256(path) for path in sorted(folder.rglob("*.py"))})


def chain(recipe: Recipe, model: dict[str, str], reads: list[dict[str, Any]], device: str) -> list[str]:
    """One key per step, each made of the one before, the call, and the bytes it reads.

    `model` is the fingerprint of the model's files, `reads` what `inputs` gave for each step.
    """
    key = digest([FORMAT, versions(), own_source(), model, recipe.seed, recipe.dtype, device])
    keys = []
    for step, read in zip(recipe.steps, reads, strict=True):
        key = digest([key, step.word, step.bound, read])
        keys.append(key)
    return keys


def inputs(step: Step, recipe: Recipe, fingerprint: Fingerprint) -> dict[str, Any]:
    """What a step reads besides the model: option (or "calibration") -> the bytes' sha256.

    A step function says so in attributes: `reads` names its options that are files, `data` those that are data
    sources, `prints` has for others a function of their value that tells the bytes behind it, and `calibrated = False`
    says that it never looks at the calibration data. PruneError for what cannot be read.
    """
    found: dict[str, Any] = {}
    for option in getattr(step.function, "reads", ()):
        if isinstance(path := step.bound.get(option), str):
            found[option] = _file(path, step, option)
    for option in getattr(step.function, "data", ()):
        if isinstance(source := step.bound.get(option), str):
            found[option] = _placed(step.where(option), fingerprint, source, split=step.bound.get("split"))
    for option, tell in getattr(step.function, "prints", {}).items():
        if (value := step.bound.get(option)) is not None:
            found[option] = _placed(step.where(option), tell, value)
    if recipe.calibration and getattr(step.function, "calibrated", True):
        text, where = recipe.calibration, recipe.document.where(("calibration", "data"))
        found["calibration"] = [asdict(text), _placed(where, fingerprint, text.data, split=text.split)]
    return found


def _placed(where: str, fingerprint: Callable[..., Any], source: Any, **options: Any) -> Any:
    try:
        return fingerprint(source, **options)
    except PruneError as error:
        raise PruneError(str(error), where=where) from None


def _file(path: str, step: Step, option: str) -> Any:
    try:
        return files.hashes(path) if Path(path).is_dir() else files.sha256(path)
    except OSError as error:
        raise PruneError(f"{option}: cannot read {path!r}: {error.strerror}", where=step.where(option)) from None


def digest(value: object) -> str:
    """The sha256 of a JSON value, in hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
