"""`remove`: score units, choose the least important ones, and slice them out of the weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import TypedDict  # pydantic refuses that of typing before Python 3.12

from prune import forecast, labels, rehearsal
from prune.errors import PruneError
from prune.model import slots
from prune.model.groups import Group, Kind, groups
from prune.model.model import Model
from prune.model.overlay import Changes
from prune.model.walk import Batch
from prune.remove.budget import added_up, allocate, matters
from prune.remove.choose import choose
from prune.remove.compensate import How, compensate
from prune.remove.cut import Plan, cut
from prune.remove.describe import in_words, notes
from prune.remove.divergence import divergence
from prune.remove.iterate import iterate
from prune.remove.plan_file import read_plan
from prune.remove.profile import profile
from prune.remove.prove import prove
from prune.remove.refit import refit as solve_anew
from prune.remove.refit import trial_windows
from prune.remove.score import check_criterion, needs_data, options, score
from prune.run import Calibration, Run
from prune.steps._common import Count, Positive, Ratio, Share, calibration_batches, place

COMPENSATED: dict[str, How] = {"flap": "bias", "obs": "weights"}  # criterion -> what its own method does after a cut
PROOF_TOKENS = (2, 64)  # windows and tokens of the batch that a cut is proved on


class Refit(TypedDict, total=False):
    """How output linears are solved anew after a cut."""

    target: Literal["auto", "dense", "pruned", "residual"]
    linears: Literal["outputs", "all"]
    damping: Annotated[float, Field(gt=0)]
    intercept: bool
    rounds: Annotated[int, Field(ge=0)]
    reference: Literal["original", "input"]


def remove(
    run: Run,
    *,
    what: Kind | Annotated[list[Kind], Field(min_length=1)],
    ratio: Ratio | None = None,
    count: Count | None = None,
    plan: str | None = None,
    budget: dict[Literal["params", "flops", "bytes"], Share] | None = None,
    uniform: bool = True,
    criterion: str | dict[str, dict[str, Any]] = "wanda",
    scope: Literal["layer", "global"] = "layer",
    normalize: Literal["mean", "standard", "none"] = "mean",
    multiple_of: Positive = 1,
    protect: list[int | str] = [],  # noqa: B006 - recipes bind it; it is never changed
    refit: bool | Refit = False,
    fold: bool = False,
    iterations: Positive = 1,
) -> None:
    """Score units, choose the least important ones, and slice them out of the weights.

    what: the kinds of units to remove: heads, query_heads, channels, layers. Several share one pass over the data.
    ratio: the fraction of the units to remove, at least 0 and below 1.
    count: the number of units to remove instead of a ratio: of every layer, or of all layers with `scope: global`.
    plan: a JSON file of kept units per group, instead of ratio or count; nothing is scored.
    budget: the share of parameters, FLOPs or bytes that may stay, as in `{params: 0.6}`, in place of a ratio: how much
        of each kind goes is then chosen, to lose least. Criterion `obs` knows the errors that this weighs best.
    uniform: with a budget, remove as much from every layer (a stock checkpoint); false lets layers differ.
    criterion: how units are scored, by name, or with its options as in `{magnitude: {norm: l1}}`.
    scope: `layer` removes the same number in every layer, which stays a stock checkpoint; `global` ranks across layers.
    normalize: how `scope: global` makes scores comparable: divided by each layer's mean, standardised, or not at all.
    multiple_of: keep a multiple of this many channels, for kernels that want aligned sizes.
    protect: layers (numbers), kinds or groups ("layers.3.heads") that stay whole.
    refit: solve the output linears anew, in closed form, for what they gave in the recipe's original model. Options:
        `target` (auto, dense, pruned, residual), `linears` (outputs, all), `damping`, `intercept`, `rounds` (of
        Gauss-Newton over whole MLPs), `reference` (original, or input: the model as the step finds it).
    fold: fold dropped layers into the MLP output before them. Refit does this by itself.
    iterations: rounds in which the ratio is reached, each scored on what the last has left.
    """
    kinds = list(dict.fromkeys([what] if isinstance(what, str) else what))
    name, settings = _criterion(criterion)
    found = groups(run.model, kinds)
    first: dict[str, Tensor] = {}  # the scores of the model as it came; later rounds count other units
    if plan is not None:
        _refuse_beside_plan(
            ratio=(ratio, None),
            count=(count, None),
            budget=(budget, None),
            uniform=(uniform, True),
            criterion=(criterion, "wanda"),
            scope=(scope, "layer"),
            normalize=(normalize, "mean"),
            multiple_of=(multiple_of, 1),
            protect=(protect, []),
            iterations=(iterations, 1),
        )
        chosen = read_plan(plan, kinds)
    else:
        how: dict[str, Any] = {"scope": scope, "normalize": normalize, "multiple_of": multiple_of, "protect": protect}
        if budget is not None and (ratio is not None or count is not None or iterations > 1):
            raise PruneError("give either a budget, or a ratio or count with its iterations", where="budget")
        if iterations > 1 and ratio is None:
            raise PruneError("iterations reach a ratio; give one", where="iterations")

        def plan_for(model: Model, share: float | None) -> Plan:
            own = groups(model, kinds)
            if budget is not None:
                scores = _scores(run, model, own, name, settings, count)
                first.update(scores)
                return _within(run, own, scores if name == "obs" else added_up(scores), budget, uniform, bool(refit))
            amount = {"ratio": share, "count": count, **how}
            turned = {**_angular(model, own, name, settings, amount), **settings}
            scores = _scores(run, model, own, name, turned, count)
            if model is run.model:
                first.update(scores)
            return choose(model, own, scores, **amount)

        def shrink(plan: Plan) -> Model:
            return mended(run, plan, name, refit=refit, fold=fold)

        if iterations > 1 and ratio is not None and not run.dry:
            chosen = iterate(run.model, plan_for, shrink, ratio=ratio, iterations=iterations)
        else:
            chosen = plan_for(run.model, ratio)
    small = cut(run.model, chosen)
    run.record.update(
        criterion=name if plan is None else None,
        removed=in_words(found, chosen, named=not run.dry),
        parameters=[run.model.tensors.parameters, small.tensors.parameters],
        bytes=[run.model.tensors.bytes, small.tensors.bytes],
        saved_as=small.config.model_type,
        notes=notes(run.model, small, found, chosen, ratio=ratio, count=count, scope=scope),
    )
    if run.dry:
        own = name if plan is None else ""
        mends = bool(refit) or fold or own in COMPENSATED
        if mends and run.calibration is None:
            raise PruneError("refit and fold look at data; give the recipe a calibration", where="refit")
        walks = plan is None and needs_data(name)
        if run.calibration is not None:
            rehearsal.calibration(run.model, run.calibration if walks or mends else _proof_text(run), seed=run.seed)
        run.record["needs"] = _remove_needs(run, small, walks=walks)
    else:
        run.record["plan"] = chosen
        run.record["shape"] = [run.model.shape(), small.shape()]
        if first:
            run.record["scores"] = profile(found, first, chosen)
        batch = _proof_batch(run)
        run.record["proof"] = prove(run.model, chosen, small, batch, device=run.device, progress=run.progress)
        small = mended(run, chosen, name if plan is None else "", refit=refit, fold=fold)
        run.record["parameters"][1], run.record["bytes"][1] = small.tensors.parameters, small.tensors.bytes
        run.record["saved_as"] = small.config.model_type
    run.model = small


remove.reads = ("plan",)  # type: ignore[attr-defined]  # options that name files


def _criterion(given: str | dict[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """A criterion's name and options."""
    if isinstance(given, str):
        return given, {}
    if len(given) != 1:
        raise PruneError("give one criterion, as in {magnitude: {norm: l1}}", where="criterion")
    return next(iter(given.items()))


def _within(
    run: Run, found: list[Group], scores: dict[str, Tensor], budget: dict[Any, float], uniform: bool, refit: bool
) -> Plan:
    """The plan that loses least within a budget, judged on some of the calibration text."""
    if any(group.layer is None for group in found):
        raise PruneError("a budget is shared out inside layers; drop layers in a step of their own", where="what")
    if run.dry or run.calibration is None:
        return allocate(run.model, found, scores, budget=budget, uniform=uniform)
    text = calibration_batches(run)
    fit, judge = trial_windows(text)
    finished = slots.opened if refit else None  # its intercepts take room
    here = {key: value for key, value in place(run).items() if key != "progress"}
    if not uniform:
        weights = matters(run.model, found, scores, judge or text, **here)
        return allocate(run.model, found, scores, budget=budget, uniform=False, weights=weights, finished=finished)

    def loss(plan: Plan) -> float:
        solved = refit and bool(fit)
        small = solve_anew(run.model, plan, fit, target="residual", **here) if solved else cut(run.model, plan)
        return divergence(small, run.model, judge or text, **here)

    return allocate(run.model, found, scores, budget=budget, judge=loss, finished=finished)


def mended(run: Run, plan: Plan, criterion: str, *, refit: bool | Refit, fold: bool) -> Model:
    """The model cut by a plan, what it lost made up for: by refit, by folding, or as the criterion's method does."""
    own = COMPENSATED.get(criterion)
    if not refit and not fold and own is None:
        return cut(run.model, plan)
    if run.calibration is None:
        raise PruneError("refit and fold look at data; give the recipe a calibration", where="refit")
    text = calibration_batches(run)
    changes = Changes.large(run.model.tensors.bytes)
    if not refit and not fold:
        run.record["compensated"] = own
        return compensate(run.model, plan, text, how=own, changes=changes, **place(run))  # type: ignore[arg-type]
    options: dict[str, Any] = {} if isinstance(refit, bool) else {**refit}
    reference = run.original if options.pop("reference", "original") == "original" else run.model
    if any(reference.numbers[number] != run.model.numbers[number] for number in ("layers", "width")):
        run.warnings.append("refit against the model as this step found it: the original has other layers")
        reference = run.model
    found: dict[str, Any] = {}
    run.record["refit"] = found
    return solve_anew(
        run.model,
        plan,
        text,
        reference=reference,
        fold_only=not refit,
        changes=changes,
        record=found,
        **options,
        **place(run),
    )


def _scores(
    run: Run, model: Model, found: list[Group], name: str, settings: dict[str, Any], count: int | None
) -> dict[str, Tensor]:
    """Scores by the criterion; in a dry run, zeros of the right shapes after every check that needs no weights."""
    known = options(name)
    if "seed" in known:
        settings = {"seed": run.seed, **settings}
    if name == "kl" and count:
        settings = {"rounds": count, **settings}
    check_criterion(found, name, settings)
    if needs_data(name) and run.calibration is None:
        raise PruneError(f"criterion {name!r} looks at data; give the recipe a calibration", where="criterion")
    if run.dry:
        return {group.name: torch.zeros(group.units) for group in found}
    text = calibration_batches(run) if needs_data(name) else None
    return score(model, found, text, criterion=name, **settings, **place(run))


def _remove_needs(run: Run, small: Model, *, walks: bool) -> dict[str, float]:
    """What removing will take: the walk over the calibration data, the proof's two, and the new checkpoint."""
    windows, tokens = PROOF_TOKENS
    parts = [
        forecast.walking(run.model, tokens=windows * tokens, length=tokens, device=run.device, walks=2),
        forecast.writing(small),
    ]
    if walks and run.calibration is not None:
        count = run.calibration.samples * run.calibration.length
        parts.append(forecast.walking(run.model, tokens=count, length=run.calibration.length, device=run.device))
    return forecast.together(*parts)


def _proof_batch(run: Run) -> Batch:
    """Calibration text where the recipe has some, else seeded token ids: what is proved holds for any."""
    windows_, tokens = PROOF_TOKENS
    if run.calibration is not None:
        return calibration_batches(replace(run, calibration=_proof_text(run)))[0]
    return labels.made_up(run.model, samples=windows_, length=tokens, seed=run.seed)


def _proof_text(run: Run) -> Calibration:
    """The part of the calibration text that a cut is proved on."""
    windows_, tokens = PROOF_TOKENS
    assert run.calibration is not None
    return replace(run.calibration, samples=windows_, length=min(run.calibration.length, tokens))


def _refuse_beside_plan(**options_: tuple[Any, Any]) -> None:
    """PruneError for options, each (value, default), that do nothing where a plan says what stays."""
    idle = [name for name, (value, default) in options_.items() if value != default]
    if idle:
        raise PruneError(f"does nothing beside a plan, which says what stays: {', '.join(idle)}", where=idle[0])


def _angular(
    model: Model, found: list[Group], name: str, settings: dict[str, Any], amount: dict[str, Any]
) -> dict[str, Any]:
    """Angular distance scores runs of layers, as long as what will be removed unless the recipe says otherwise."""
    if name != "redundancy" or settings.get("distance") != "angular":
        return {}
    check_criterion(found, name, settings)
    kept = choose(model, found, {group.name: torch.zeros(group.units) for group in found}, **amount)
    return {"run": max(found[0].units - len(kept.get(found[0].name, range(found[0].units))), 1)}
