"""Within a budget: the plan of a step, judged by what predictions lose once the cut is refitted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from prune.errors import PruneError
from prune.model import slots
from prune.model.groups import Group
from prune.model.model import Model
from prune.model.walk import Batch, logits
from prune.remove.budget import added_up, allocate, by_layer, matters, on_grid, problem
from prune.remove.costs import known
from prune.remove.cut import Plan, cut
from prune.remove.divergence import divergence
from prune.remove.exchange import exchange
from prune.remove.refit import refit, trial_windows

WINDOWS = (16, 8)  # windows that the shapes are refitted and judged on, at most


@dataclass(frozen=True)
class Search:
    """How plans are compared: after `refit` with these options (None: as they are cut), on some calibration windows.

    Timings are kept in the folder `unfinished`, so that a run that was stopped goes on with the same, and in `record`.
    """

    refit: Mapping[str, Any] | None = None
    unfinished: Path | None = None
    record: dict[str, Any] = field(default_factory=dict)
    place: Mapping[str, Any] = field(default_factory=dict)


def within(
    model: Model,
    groups: Sequence[Group],
    scores: Mapping[str, Tensor],
    batches: Sequence[Batch] | None,
    budget: Mapping[str, float],
    search: Search,
    *,
    exact: bool,
    uniform: bool,
) -> Plan:
    """The plan that loses least within a budget, judged on some of the batches; by error curves alone without any.

    `exact` says that the scores are error curves already. Raises PruneError for groups that span the model, and when
    the budget cannot be met.
    """
    spanning = sorted({group.kind for group in groups if group.layer is None} - ({"width"} if uniform else set()))
    if spanning:
        what = "has one size for all layers" if spanning == ["width"] else "is not shared out by a budget"
        raise PruneError(f"{spanning[0]} {what}; remove it in a step of its own", where="what")
    curves = dict(scores) if exact and "width" not in {g.kind for g in groups} else added_up(scores)
    finished = slots.opened if search.refit is not None else None  # its intercepts take room
    if batches is None:
        known_ahead = dict(budget)
        if "latency" in budget:  # nothing is timed yet: about as many FLOPs
            known_ahead["flops"] = min(known_ahead.pop("latency"), known_ahead.get("flops", 1.0))
        return allocate(model, groups, curves, budget=known_ahead, uniform=uniform, finished=finished)
    here = {key: value for key, value in search.place.items() if key != "progress"}
    kept = None if search.unfinished is None else search.unfinished / "latency.json"
    costs, table = known(budget, model, groups, kept=kept, **here)
    if table is not None:
        search.record["latency"] = asdict(table)
    asked = problem(model, groups, curves, budget, finished=finished, costs=costs)
    judge = _judge(model, batches, search.refit, here)
    sizes = on_grid(asked, judge)
    if sizes is None:
        allocate(model, groups, curves, budget=budget, finished=finished, costs=costs)  # says what the smallest is
        raise AssertionError("a budget that no shape of the grid meets is refused")
    if uniform:
        return asked.plan(sizes)
    _, judged = trial_windows(batches, WINDOWS)
    start = asked.filled(sizes)
    by_curves = by_layer(asked, matters(model, groups, curves, judged or batches, **here))
    starts = [start] if by_curves is None else [start, by_curves]
    best = min(starts, key=lambda sizes: judge(asked.plan(sizes)))
    found = exchange(asked, best, lambda sizes: judge(asked.plan(sizes)))
    search.record["search"] = {
        "uniform": judge(asked.plan(start)),
        "curves": None if by_curves is None else judge(asked.plan(by_curves)),
        "found": judge(asked.plan(found)),
    }
    return asked.plan(found)


def _judge(
    model: Model, batches: Sequence[Batch], options: Mapping[str, Any] | None, place: Mapping[str, Any]
) -> Callable[[Plan], float]:
    """What a plan loses: the KL divergence from the uncut model, after refit where there will be one; remembered."""
    fit, judged = trial_windows(batches, WINDOWS)
    judged = judged or list(batches)
    expected = list(logits(model, judged, **place))
    settings = {"damping": 1e-2, **(options or {}), "rounds": 0, "target": _target(options)}
    settings.pop("reference", None)
    seen: dict[str, float] = {}

    def judge(plan: Plan) -> float:
        key = str(sorted(plan.items()))
        if key not in seen:
            solved = options is not None and bool(fit)
            small = refit(model, plan, fit, **settings, **place) if solved else cut(model, plan)
            seen[key] = divergence(small, model, judged, expected=expected, **place)
        return seen[key]

    return judge


def _target(options: Mapping[str, Any] | None) -> str:
    target = str((options or {}).get("target", "auto"))
    return "residual" if target == "auto" else target
