"""From what a step asks for to a plan: units scored and chosen, in rounds or within a budget where that is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from prune.errors import PruneError
from prune.model.groups import Group, Kind, groups
from prune.model.model import Model
from prune.model.walk import Batch
from prune.remove.at_once import Choosing, possible
from prune.remove.choose import asked, choose
from prune.remove.cut import Plan
from prune.remove.iterate import iterate
from prune.remove.mend import Mending, mend, mend_at_once, note
from prune.remove.score import Scores, check_criterion, score, short_of_tokens
from prune.remove.within import Search, within


@dataclass(frozen=True)
class Wanted:
    """What is to go: the kinds of units, how they are scored, and how many go by which rules (`choose`'s options)."""

    kinds: Sequence[Kind]
    criterion: str
    settings: Mapping[str, Any]
    how: Mapping[str, Any]
    ratio: float | None = None
    count: int | None = None
    budget: Mapping[str, float] | None = None
    uniform: bool = True
    iterations: int = 1


@dataclass(frozen=True)
class Surroundings:
    """What is at hand: calibration batches (None in a dry run), the recipe's original model, and where to compute.

    What a search finds out is kept in the folder `unfinished` and in `record`.
    """

    text: Sequence[Batch] | None = None
    original: Model | None = None
    unfinished: Path | None = None
    record: dict[str, Any] = field(default_factory=dict)
    place: Mapping[str, Any] = field(default_factory=dict)
    dry: bool = False


@dataclass(frozen=True)
class Decision:
    """A plan, the scores of the model as it came (later rounds count other units), and the mended cut if it is made."""

    plan: Plan
    scores: Scores = field(default_factory=dict)
    small: Model | None = None


def decide(model: Model, wanted: Wanted, mending: Mending, at: Surroundings) -> Decision:
    """What goes. Where one walk can choose and refit at once, it does, and the model is part of the answer."""
    if not at.dry and at.text is not None and _at_once(model, wanted, mending, at):
        amount = {"ratio": wanted.ratio, "count": wanted.count, **wanted.how}
        choosing = Choosing(wanted.criterion, wanted.settings, amount)
        own = groups(model, wanted.kinds)
        found = mend_at_once(model, own, at.text, choosing, mending, record=at.record, **at.place)
        return Decision(found.plan, found.scores, found.model)
    first: Scores = {}

    def plan_for(current: Model, share: float | None, of: Mapping[str, int]) -> Plan:
        plan, scores = _planned(current, wanted, share, of, mending, at)
        if current is model:
            first.update(scores)
        return plan

    if wanted.iterations == 1 or wanted.ratio is None or at.dry:
        return Decision(plan_for(model, wanted.ratio, {}), first)

    def shrink(so_far: Plan) -> Model:
        done: dict[str, Any] = {}
        small = mend(model, so_far, at.text, mending, original=at.original, record=done, **at.place)
        note(at.record, done)
        return small

    plan = iterate(
        model,
        plan_for,
        shrink,
        ratio=wanted.ratio,
        iterations=wanted.iterations,
        units={group.name: group.units for group in groups(model, wanted.kinds)},
    )
    return Decision(plan, first)


def _at_once(model: Model, wanted: Wanted, mending: Mending, at: Surroundings) -> bool:
    if mending.refit is None or wanted.budget is not None or wanted.iterations > 1:
        return False
    aims_elsewhere = at.original is not None and at.original is not model
    if mending.refit.get("reference", "original") == "original" and aims_elsewhere:
        return False
    choosing = Choosing(wanted.criterion, wanted.settings, wanted.how)
    return possible(wanted.kinds, choosing, mending.refit.get("target", "auto"))


def _planned(
    model: Model, wanted: Wanted, share: float | None, of: Mapping[str, int], mending: Mending, at: Surroundings
) -> tuple[Plan, Scores]:
    """The plan for one model, with a ratio of its own `of` the units there were, and the scores it follows from."""
    own = groups(model, wanted.kinds)
    amount = {"ratio": share, "count": wanted.count, "of": of, **wanted.how}
    settings = wanted.settings if wanted.budget is not None else _fitting(model, own, wanted, amount)
    scores = _scores(model, own, wanted.criterion, settings, at)
    if mending.refit is None and at.text is not None and not at.dry:
        note(at.record, {"few_tokens": short_of_tokens(model, own, at.text, wanted.criterion)})
    if wanted.budget is None:
        return choose(model, own, scores, **amount), scores
    search = Search(mending.refit, at.unfinished, at.record, at.place, mending.opens)
    text = None if at.dry else at.text
    bounds = {name: wanted.how[name] for name in ("multiple_of", "protect") if name in wanted.how}
    options = {"exact": wanted.criterion == "obs", "uniform": wanted.uniform, **bounds}
    return within(model, own, scores, text, wanted.budget, search, **options), scores


def _scores(model: Model, own: list[Group], name: str, settings: Mapping[str, Any], at: Surroundings) -> Scores:
    """Scores by the criterion; in a dry run, zeros of the right shapes after every check that needs no weights."""
    check_criterion(own, name, settings)
    if at.dry:
        return {group.name: torch.zeros(group.units) for group in own}
    return score(model, own, at.text, criterion=name, **settings, **at.place)


def _fitting(model: Model, own: list[Group], wanted: Wanted, amount: Mapping[str, Any]) -> Mapping[str, Any]:
    """The criterion's options, with those that follow from how much goes, unless the recipe says otherwise."""
    settings = {**_angular(model, own, wanted, amount), **wanted.settings}
    return _rounds(own, wanted.criterion, settings, amount)


def _rounds(own: list[Group], name: str, settings: dict[str, Any], amount: Mapping[str, Any]) -> dict[str, Any]:
    """The greedy criterion drops as many as will go, one in each round."""
    if name != "kl" or len({group.units for group in own}) > 1:
        return settings
    units = own[0].units
    gone = units - asked(own[0], amount["ratio"], amount["count"], amount["of"])
    return {"rounds": min(gone, units - 1), **settings} if gone else settings


def _angular(model: Model, own: list[Group], wanted: Wanted, amount: Mapping[str, Any]) -> dict[str, Any]:
    """Angular distance scores runs of layers, as long as what will be removed."""
    if wanted.criterion != "redundancy" or wanted.settings.get("distance") != "angular":
        return {}
    check_criterion(own, wanted.criterion, wanted.settings)
    kept = choose(model, own, {group.name: torch.zeros(group.units) for group in own}, **amount)
    return {"run": max(own[0].units - len(kept.get(own[0].name, range(own[0].units))), 1)}


def check_amounts(wanted: Wanted, *, idle: Sequence[str], plan: str | None) -> None:
    """PruneError for options that do nothing beside others: where a plan says what stays, or a budget how much.

    `idle` names the options of amount and criterion that were given.
    """
    if plan is not None and idle:
        raise PruneError(f"does nothing beside a plan, which says what stays: {', '.join(idle)}", where=idle[0])
    if wanted.budget is not None and {"ratio", "count", "iterations"} & set(idle):
        raise PruneError("give either a budget, or a ratio or count with its iterations", where="budget")
    if wanted.budget is not None and (ranked := {"scope", "normalize"} & set(idle)):
        names = sorted(ranked, reverse=True)
        raise PruneError(f"does nothing beside a budget, which shares out itself: {', '.join(names)}", where=names[0])
    if wanted.budget is None and not wanted.uniform:
        raise PruneError(
            "says how a budget is shared out, and there is none; scope: global is for a ratio", where="uniform"
        )
    if wanted.iterations > 1 and wanted.ratio is None:
        raise PruneError("iterations reach a ratio; give one", where="iterations")
    if wanted.iterations > 1 and len(wanted.kinds) > 1 and {"attention", "mlp"} & set(wanted.kinds):
        raise PruneError("halves of layers go in steps of their own where there are iterations", where="iterations")
