"""One walk in place of two: in each layer units are scored, chosen, and made up for, before the next is read.

What a layer's units score is known from the uncut stream alone, which a refit runs beside the cut one anyway. So where
each layer loses units by its own scores, as many as the others, scoring costs no pass of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from prune.model import slots
from prune.model.groups import Group
from prune.model.model import Model
from prune.model.overlay import Changes, changed
from prune.model.tensors import Tensors
from prune.model.walk import Batch, Visit
from prune.progress import Progress
from prune.remove.choose import best, choose
from prune.remove.cut import Plan, cut
from prune.remove.layerfit import Settings
from prune.remove.refit import SHARES, best_target, fitted, trial_windows
from prune.remove.score import Scores, check_criterion, criterion, score, scored

KINDS = ("heads", "query_heads", "channels")  # whose units lie in one layer


@dataclass(frozen=True)
class Choosing:
    """How units are chosen: the criterion with its options, and those of `choose`."""

    criterion: str
    settings: Mapping[str, Any]
    amount: Mapping[str, Any]


@dataclass(frozen=True)
class Cut:
    """The plan, the scores it follows from, and the cut model with its linears solved anew."""

    plan: Plan
    scores: Scores
    model: Model


def possible(kinds: Sequence[str], choosing: Choosing, target: str) -> bool:
    """Whether one walk is enough: every layer is scored, and loses units, on its own."""
    module = criterion(choosing.criterion)
    alone = not hasattr(module, "score_model") and bool(module.NEEDS)
    return (
        alone and set(kinds) <= set(KINDS) and choosing.amount.get("scope", "layer") == "layer" and target != "pruned"
    )


def score_and_refit(
    model: Model,
    groups: Sequence[Group],
    batches: Sequence[Batch],
    choosing: Choosing,
    *,
    target: str = "auto",
    linears: Any = "outputs",
    damping: float | None = None,
    intercept: bool = True,
    rounds: int = 0,
    changes: Changes | None = None,
    record: dict[str, Any] | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> Cut:
    """Score, choose and refit against `model` itself.

    The same as `score`, `choose` and `refit` in turn, whose options these are. "auto" compares its targets on units
    that the trial windows alone have chosen. Raises PruneError as those do.
    """
    module = check_criterion(groups, choosing.criterion, choosing.settings)
    record, changes = {} if record is None else record, changes or Changes()
    place: dict[str, Any] = {"device": device, "dtype": dtype}
    common: dict[str, Any] = {"linears": linears, "damping": damping, "intercept": intercept, "rounds": rounds}
    plan = choose(model, groups, {group.name: torch.zeros(group.units) for group in groups}, **choosing.amount)

    def small() -> Model:
        return slots.opened(cut(model, plan)) if intercept else cut(model, plan)

    if target == "auto":
        few = trial_windows(batches)[0] or batches
        tried = score(model, groups, few, criterion=choosing.criterion, **choosing.settings, **place)
        plan.update(choose(model, groups, tried, **choosing.amount))
        target = best_target(model, model, small(), plan, batches, common, record, place)
    record.update(
        target=target, linears=linears, intercept=small().tensors.parameters > cut(model, plan).tensors.parameters
    )
    scores: Scores = {}
    table = {group.name: group for group in groups}
    current = cut(model, plan)
    lazy = replace(current, tensors=Tensors(current.tensors.info, lambda name: current.tensors.read(name)))

    def arrive(dense: Visit, run: Callable[[int], Tensor]) -> None:
        nonlocal current
        own = scored(dense, model, groups, module, choosing.settings, run)
        scores.update(own)
        plan.update({name: best(table[name], own[name], len(plan[name])) for name in own if name in plan})
        current = cut(model, plan)

    opened = slots.opened(lazy) if intercept else lazy
    settings = Settings(SHARES[target], False, **common)
    fitted(model, model, opened, plan, batches, settings, changes, record, place, progress, arrive)
    return Cut(plan, scores, changed(small(), changes))
