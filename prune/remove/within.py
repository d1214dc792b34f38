"""Within a budget: the plan of a step, judged by what predictions lose once the cut is refitted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from prune.errors import PruneError
from prune.model import slots
from prune.model.groups import Group
from prune.model.model import Model
from prune.model.walk import Batch, logits
from prune.remove.budget import Problem, Sizes, added_up, by_layer, check_met, matters, on_grid, problem
from prune.remove.costs import COSTS, Cost, known
from prune.remove.cut import Plan, cut
from prune.remove.divergence import divergence
from prune.remove.exchange import exchange
from prune.remove.refit import refit, trial_windows

WINDOWS = (16, 8)  # windows that the shapes are refitted and judged on, at most


@dataclass(frozen=True)
class Search:
    """How plans are compared: after `refit` with these options (None: as they are cut), on some calibration windows.

    `opens` says that what is done after the cut adds biases where the stock config has slots. Timings are kept in the
    folder `unfinished`, so that a run that was stopped goes on with the same, and in `record`.
    """

    refit: Mapping[str, Any] | None = None
    unfinished: Path | None = None
    record: dict[str, Any] = field(default_factory=dict)
    place: Mapping[str, Any] = field(default_factory=dict)
    opens: bool = False


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
    multiple_of: int = 1,
    protect: Iterable[int | str] = (),
) -> Plan:
    """The plan that loses least within a budget, judged on some of the batches; by error curves alone without any.

    `exact` says that the scores of groups in layers are error curves already. `multiple_of` and `protect` are as in
    `choose`. The search's record is given the shares that the plan comes to (`landed`). Raises PruneError for groups
    that span the model, and when the budget cannot be met.
    """
    spanning = sorted({group.kind for group in groups if group.layer is None} - ({"width"} if uniform else set()))
    if spanning:
        what = "has one size for all layers" if spanning == ["width"] else "is not shared out by a budget"
        raise PruneError(f"{spanning[0]} {what}; remove it in a step of its own", where="what")
    summed = {group.name for group in groups if not exact or group.layer is None}
    curves = {**scores, **added_up({name: scores[name] for name in summed})}
    here = {key: value for key, value in search.place.items() if key != "progress"}
    wanted, costs = _costs(model, groups, batches, budget, search, here)
    finished = slots.opened if search.opens else None
    bounds: dict[str, Any] = {"multiple_of": multiple_of, "protect": protect}
    asked = problem(model, groups, curves, wanted, finished=finished, costs=costs, **bounds)
    check_met(asked, uniform=uniform)
    judge = None if batches is None else _judge(model, batches, search.refit, here)
    if uniform:
        sizes = on_grid(asked, judge)
    elif judge is None or batches is None:
        sizes = by_layer(asked, {})
    else:
        _, judged = trial_windows(batches, WINDOWS)
        weights = matters(model, asked.groups, curves, judged or batches, **here)
        sizes = _searched(asked, weights, judge, search.record)
    search.record["landed"] = asked.shares(sizes)
    return asked.plan(sizes)


def _costs(
    model: Model,
    groups: Sequence[Group],
    batches: Sequence[Batch] | None,
    budget: Mapping[str, float],
    search: Search,
    place: Mapping[str, Any],
) -> tuple[Mapping[str, float], Mapping[str, Cost]]:
    """The budget and its costs; without batches nothing is timed, and latency is taken to be about as many FLOPs."""
    if batches is None:
        known_ahead = dict(budget)
        if "latency" in budget:
            known_ahead["flops"] = min(known_ahead.pop("latency"), known_ahead.get("flops", 1.0))
        return known_ahead, COSTS
    kept = None if search.unfinished is None else search.unfinished / "latency.json"
    costs, table = known(budget, model, groups, kept=kept, **place)
    if table is not None:
        search.record["latency"] = asdict(table)
    return budget, costs


def _searched(
    asked: Problem, weights: Mapping[str, float], judge: Callable[[Plan], float], record: dict[str, Any]
) -> Sizes:
    """Sizes by layer: from the uniform shape, if one meets the budget, or those by the curves, to better ones."""
    starts: dict[str, Sizes] = {}
    if asked.fits(asked.least(uniform=True)):
        starts["uniform"] = asked.filled(on_grid(asked, judge))
    starts["curves"] = by_layer(asked, weights)
    lost = {name: judge(asked.plan(sizes)) for name, sizes in starts.items()}
    found = exchange(asked, starts[min(lost, key=lost.__getitem__)], lambda sizes: judge(asked.plan(sizes)))
    record["search"] = {"uniform": None, **lost, "found": judge(asked.plan(found))}
    return found


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
