"""Scoring: every unit's importance, high = keep, from one walk over the calibration data or none."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from prune.errors import PruneError, unknown
from prune.model.groups import Group, within
from prune.model.model import Model
from prune.model.walk import Batch, Visit, walk
from prune.options import check_options, options_of
from prune.progress import Progress
from prune.remove.gather import gather

Scores = dict[str, Tensor]  # one float32 tensor (units,) per group name


def criteria() -> list[str]:
    """The criteria there are: the file names of `criteria/`."""
    folder = Path(__file__).parent / "criteria"
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def criterion(name: str) -> ModuleType:
    """The module of a criterion. Raises PruneError with the choices."""
    if name not in criteria():
        raise unknown("criterion", name, criteria())
    return importlib.import_module(f"prune.remove.criteria.{name}")


def options(name: str) -> dict[str, inspect.Parameter]:
    """The options a criterion takes, by name."""
    return options_of(_function(criterion(name)))


def _function(module: ModuleType) -> Callable[..., Any]:
    """What scores: all groups in one walk of its own, or one group at a time."""
    found: Callable[..., Any] = module.score_model if hasattr(module, "score_model") else module.score
    return found


def needs_data(name: str) -> bool:
    """Whether a criterion looks at calibration data."""
    module = criterion(name)
    return hasattr(module, "score_model") or bool(module.NEEDS)


def score(
    model: Model,
    groups: Sequence[Group],
    batches: Sequence[Batch] | None = None,
    *,
    criterion: str = "wanda",
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Scores:
    """One float32 tensor (units,) per group, high = keep.

    `batches` are calibration batches of token ids (batch, length), for criteria that look at activations. `settings`
    are the criterion's own options. Raises PruneError for an unknown criterion or option, a kind it does not score, or
    missing data.
    """
    module = check_criterion(groups, criterion, settings)
    if batches is None and needs_data(criterion):
        raise PruneError(f"criterion {criterion!r} looks at data; give batches")
    place: dict[str, Any] = {"device": device, "dtype": dtype}
    if hasattr(module, "score_model"):
        return dict(module.score_model(model, groups, batches, **settings, **place))
    if not module.NEEDS:
        return {group.name: module.score(group, model.tensors.read, {}, **settings) for group in groups}
    return _walked(model, groups, batches or [], module, settings, place, progress)


def _walked(
    model: Model,
    groups: Sequence[Group],
    batches: Sequence[Batch],
    module: ModuleType,
    settings: Mapping[str, Any],
    place: Mapping[str, Any],
    progress: Progress | None,
) -> Scores:
    scores: Scores = {}
    for visit in walk(model, batches, progress=progress, **place):
        for name, own in scored(visit, model, groups, module, settings).items():
            scores[name] = scores[name] + own if name in scores else own
    return scores


def scored(
    visit: Visit,
    model: Model,
    groups: Sequence[Group],
    module: ModuleType,
    settings: Mapping[str, Any],
    run: Callable[[int], Tensor] | None = None,
) -> Scores:
    """The scores that one layer gives to the groups in it, after all batches went through it; `run` as in `gather`."""
    root = model.layer(visit.index)
    here = [own for group in groups if (own := within(group, visit.index, root)) is not None]
    consumers = {piece.name: piece for group in here for piece in group.consumers}
    found = gather(visit, root, consumers.values(), module.NEEDS, run)
    weights = dict(visit.module.named_parameters(prefix=root))
    return {group.name: module.score(group, weights.__getitem__, found, **settings) for group in here}


def short_of_tokens(model: Model, groups: Sequence[Group], batches: Sequence[Batch], name: str) -> list[str]:
    """The linears whose inputs' Gram a criterion inverts though they have more inputs than there are tokens of text."""
    texts = [
        batch.get("attention_mask", torch.ones_like(batch["input_ids"])) for batch in batches if "input_ids" in batch
    ]
    if not texts or "gram" not in getattr(criterion(name), "NEEDS", ()):
        return []
    tokens = sum(int(text.sum()) for text in texts)
    roots = [model.layer(index) for index in range(model.numbers["layers"])]
    own = [part for group in groups for i, root in enumerate(roots) if (part := within(group, i, root)) is not None]
    inputs = {piece.name: model.tensors.info[piece.name].shape[piece.dim] for part in own for piece in part.consumers}
    return [consumer.rpartition(".")[0] for consumer, size in inputs.items() if tokens < size]


def check_criterion(groups: Sequence[Group], name: str, settings: Mapping[str, Any]) -> ModuleType:
    """The criterion's module, after it was found to score these groups with these options. Raises PruneError."""
    module = criterion(name)
    for group in groups:
        if group.kind not in module.KINDS:
            able = [other for other in criteria() if group.kind in criterion(other).KINDS]
            raise PruneError(f"criterion {name!r} does not score {group.kind}; choices: {', '.join(able)}")
    check_options(_function(module), settings, of=f"criterion {name}")
    if hasattr(module, "check"):  # of options against the groups
        module.check(groups, **settings)
    return module
