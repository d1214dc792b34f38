"""Models to disk and back into memory: whole checkpoints that stock transformers loads, written tensor by tensor."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from prune import files
from prune.model import layout, skeleton
from prune.model.checkpoint import write_folder
from prune.model.companions import content
from prune.model.model import Model
from prune.model.open import open as open_model
from prune.model.tensors import Tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def save(model: Model, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write a checkpoint to `folder`, whole or not at all: staged beside it, flushed, re-read, then renamed.

    A uniform model loads with plain `AutoModelForCausalLM.from_pretrained`, any other with `prune.load`. A folder
    that stands there is replaced only with `overwrite`, and only if it is ours. Raises PruneError otherwise.
    """
    with files.staged(folder, overwrite=overwrite) as staging:
        table = write(model, staging)
        files.write_json(staging / files.MANIFEST, {"format": files.MARK, "files": table, "source": model.source})
    return Path(folder)


def write(model: Model, folder: Path) -> dict[str, str]:
    """Write a checkpoint into an existing folder; gives file name -> sha256 of what was read back from disk.

    Raises PruneError when the disk gives back something else than was written.
    """
    (folder / "config.json").write_text(_config_text(model), encoding="utf-8")
    for name, path in model.files.items():
        (folder / name).write_bytes(content(path))
    written = write_folder(layout.as_stored(model), folder)
    files.flush(folder)
    small = {name: files.sha256(folder / name) for name in ("config.json", *model.files)}
    return dict(sorted((small | written).items()))


def _config_text(model: Model) -> str:
    """The config as transformers writes it."""
    values = json.loads(model.config.to_json_string(use_diff=True))
    values["architectures"] = [model.architecture.__name__]
    values |= _rotary_as_before(values)
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


def _rotary_as_before(values: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings where transformers 4 and what builds on it read them, beside `rope_parameters`.

    Without them it takes the default base, and says something else without a word.
    """
    rotary = values.get("rope_parameters")
    if not isinstance(rotary, dict) or "rope_theta" not in rotary:
        return {}
    scaling = {name: value for name, value in rotary.items() if name != "rope_theta"}
    scaled = rotary.get("rope_type", "default") != "default"
    return {"rope_theta": rotary["rope_theta"], **({"rope_scaling": scaling} if scaled else {})}


def load(
    source: str | Path | Model, *, device: str = "cpu", dtype: torch.dtype | None = None, revision: str | None = None
) -> PreTrainedModel:
    """A checkpoint (or an opened or cut model) as a module ready to run, uniform or not; `dtype` None is as stored.

    Unlike `from_pretrained`, every tensor must be there with the shape and dtype the config states. The weights are
    the module's own. Raises PruneError.
    """
    model = source if isinstance(source, Model) else open_model(source, revision=revision)
    if not model.weights:  # tensors of a module in memory must not be shared
        shared = model.tensors.read
        model = replace(model, tensors=Tensors(model.tensors.info, lambda name: shared(name).clone()))
    root = skeleton.skeleton(model)
    skeleton.fill(root, "", model.tensors, torch.device(device), dtype)
    root.tie_weights()
    if dtype is not None:
        root.config.dtype = dtype
    if "generation_config.json" in model.files:
        from transformers import GenerationConfig

        root.generation_config = GenerationConfig.from_dict(json.loads(content(model.files["generation_config.json"])))
    return root.requires_grad_(True)
