"""`prune.merge`: several models become one, as a lazy view; every tensor is computed when it is read."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from prune.document import Document
from prune.errors import PruneError
from prune.merging import chance, vocabulary
from prune.merging.config import Config
from prune.merging.heads import alike
from prune.merging.inputs import opened
from prune.merging.layers import stack
from prune.merging.methods import method, names
from prune.merging.parse import parse
from prune.merging.plan import Options, Plan, plan
from prune.merging.profile import Profile
from prune.merging.stream import HELD, compute, pieces
from prune.model.memory import available
from prune.model.model import Model
from prune.model.tensors import Info, Tensors

Given = str | Path | Mapping[str, Any] | Document


def merge(
    config: Given,
    *,
    models: Mapping[str, Model] | None = None,
    seed: int | None = None,
    compat: Literal["mergekit"] | None = None,
    device: str = "cpu",
) -> Model:
    """The model that a merge config (a mergekit YAML file, or what it holds) makes of others, as a lazy view.

    Nothing is read until the model is saved or walked; each tensor is computed then, in float32 whatever it is stored
    in, from parts of its inputs. `models` are opened models that the config may name. Random masks follow from `seed`
    (the config's `random_seed`, or 0) and each tensor's name alone. `compat="mergekit"` computes in the config's
    `dtype`, and draws masks, as mergekit 0.1.5 does. Raises PruneError for whatever is wrong, before a tensor is read.
    """
    return prepare(config, models=models, seed=seed, compat=compat, device=device).model


@dataclass(frozen=True)
class Merged:
    """A merge that can be written: the lazy model, what was planned, and what is to be recorded of it."""

    model: Model
    plan: Plan
    config: Config
    record: dict[str, Any]
    profile: Profile | None

    def stacked(self, layers: Sequence[int]) -> Merged:
        """The merged model with its layers in another order."""
        return replace(self, model=stack(self.model, layers))


def prepare(
    config: Given,
    *,
    models: Mapping[str, Model] | None = None,
    seed: int | None = None,
    compat: Literal["mergekit"] | None = None,
    device: str = "cpu",
    profile: bool = False,
    headers: bool = False,
    change: Callable[[Model], Model] | None = None,
) -> Merged:
    """As `merge`, with what was planned.

    With `profile` the merge's changes are measured while tensors are read, with `headers` Hub models are not fetched
    whole; `change` is done to every model that is opened here.
    """
    parsed = parse(config, names())
    inputs, told = alike(parsed, opened(parsed, models or {}, headers=headers, change=change))
    options = Options(seed if seed is not None else parsed.seed or 0, compat == "mergekit", device)
    aligned = vocabulary.align(parsed, inputs)
    if aligned is None:
        vocabulary.agree(parsed, inputs)
    made = plan(parsed, inputs, options, aligned[0] if aligned else None)
    made.warnings += told
    files = vocabulary.with_template(parsed, inputs, aligned[1] if aligned else made.donor.files)
    watch = Profile.of(made) if profile else None
    tensors = Tensors(
        {name: Info(job.shape, job.out) for name, job in made.jobs.items()},
        lambda name: compute(made.jobs[name], watch.watch(name) if watch else None),
        threads=max(os.cpu_count() or 1, 1),
        stream=lambda name: pieces(made.jobs[name], watch.watch(name) if watch else None),
    )
    model = replace(
        made.donor,
        config=made.config,
        architecture=made.architecture,
        tensors=tensors,
        source=f"a {parsed.method} merge",
        files=files,
        weights=(),
    )
    return Merged(model, made, parsed, _record(parsed, made, options), watch)


def _record(config: Config, made: Plan, options: Options) -> dict[str, Any]:
    """What was merged and how: enough to know where each number came from."""
    found: dict[str, Any] = {
        "method": config.method,
        "inputs": [str(reference) for reference in made.inputs],
        "base": str(config.base) if config.base else None,
        "dtype": config.dtype,
        "computed_in": sorted({str(job.dtype).removeprefix("torch.") for job in made.jobs.values()}),
        "compat": "mergekit" if options.compat else None,
    }
    if made.special:
        found["special_tokens"] = made.special
    if getattr(method(config.method), "DRAWS", False):
        found["masks"] = {"seed": options.seed, "rule": chance.COMPAT_RULE if options.compat else chance.RULE}
    return found


def needs(merged: Merged) -> dict[str, float]:
    """Bytes of memory and disk, and seconds, that writing the merge will take, from shapes."""
    largest = max((_floats(job.shape) for job in merged.plan.jobs.values()), default=0)
    model = merged.model
    threads = model.tensors.threads
    whole = any(hasattr(job.method, "whole") or job.compat for job in merged.plan.jobs.values())
    count = len(merged.plan.inputs)
    work = threads * (count + 2) * 4 * (largest if whole else min(largest, HELD))
    return {
        "memory": float(400 * 10**6 + work),
        "disk": float(model.tensors.bytes),
        "seconds": model.tensors.parameters * (count + 1) * 4e-9,
    }


def _floats(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def refuse_too_large(merged: Merged) -> None:
    """PruneError where the memory that is free will not do."""
    free = available("cpu")
    needed = needs(merged)["memory"]
    if needed > free:
        raise PruneError(f"needs {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free")
