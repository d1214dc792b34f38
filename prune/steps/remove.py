"""`remove`: score units, choose the least important ones, and slice them out of the weights."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypedDict  # pydantic refuses that of typing before Python 3.12

from prune import forecast, labels, rehearsal
from prune.errors import PruneError
from prune.model.groups import Kind, groups
from prune.model.model import Model
from prune.model.walk import Batch
from prune.remove.absorb import absorb as absorbed
from prune.remove.cut import Plan, cut
from prune.remove.decide import Decision, Surroundings, Wanted, check_amounts, decide
from prune.remove.describe import in_words, notes
from prune.remove.mend import Mending, check_mending, mend, warnings
from prune.remove.plan_file import read_plan
from prune.remove.profile import profile
from prune.remove.prove import prove
from prune.remove.score import needs_data, options, score
from prune.remove.stream import measured
from prune.run import Calibration, Run
from prune.steps._common import Count, Positive, Ratio, Share, calibration_batches, place

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
    budget: dict[Literal["params", "flops", "bytes", "latency"], Share] | None = None,
    uniform: bool = True,
    criterion: str | dict[str, dict[str, Any]] = "wanda",
    scope: Literal["layer", "global"] = "layer",
    normalize: Literal["mean", "standard", "none"] = "mean",
    multiple_of: Positive = 1,
    protect: list[int | str] = [],  # noqa: B006 - recipes bind it; it is never changed
    refit: bool | Refit = False,
    fold: bool = False,
    absorb: bool = False,
    iterations: Positive = 1,
) -> None:
    """Score units, choose the least important ones, and slice them out of the weights.

    what: the kinds of units to remove: heads, query_heads, channels, experts, layers, attention, mlp (those of whole
        layers), width (of the hidden state). Several share one pass over the data.
    ratio: the fraction of the units to remove, at least 0 and below 1.
    count: the number of units to remove instead of a ratio: of every layer, or of all layers with `scope: global`.
    plan: a JSON file of kept units per group, instead of ratio or count; nothing is scored.
    budget: the share of params, flops, bytes or latency (as timed here, for prompts) that may stay, as in
        `{params: 0.6}`, in place of a ratio: how much of each kind goes is then chosen, to lose least. Several hold at
        once. `protect` and `multiple_of` hold too. Criterion `obs` knows the errors that this weighs best.
    uniform: with a budget, remove as much from every layer (a stock checkpoint); false lets layers differ, and searches
        from the uniform shape on for what is predicted better after refit.
    criterion: how units are scored, by name, or with its options as in `{magnitude: {norm: l1}}`.
    scope: `layer` removes the same number in every layer, which stays a stock checkpoint; `global` ranks across layers.
    normalize: how `scope: global` makes scores comparable: divided by each layer's mean, standardised, or not at all.
    multiple_of: keep a multiple of this many channels (and of the width), for kernels that want aligned sizes.
    protect: layers (numbers), kinds or groups ("layers.3.heads") that stay whole.
    refit: solve the output linears anew, in closed form, for what they gave in the recipe's original model. Options:
        `target` (auto, dense, pruned, residual), `linears` (outputs, all), `damping`, `intercept`, `rounds` (of
        Gauss-Newton over whole MLPs), `reference` (original, or input: the model as the step finds it). Damping is
        raised where the Gram of a linear's inputs is singular, which the report tells.
    fold: fold dropped layers into the MLP output before them. Refit does this by itself.
    absorb: average dropped experts, after the last round, into the kept one whose router row is most like theirs (Li et
        al., MC-SMoE, https://arxiv.org/abs/2310.01334), weighted by how much each is used: one more pass over the data.
    iterations: rounds in which the ratio is reached, each scored on what the last has left.
    """
    kinds = list(dict.fromkeys([what] if isinstance(what, str) else what))
    name, settings = _criterion(criterion, run.seed)
    how: dict[str, Any] = {"scope": scope, "normalize": normalize, "multiple_of": multiple_of, "protect": protect}
    wanted = Wanted(kinds, name, settings, how, ratio, count, budget, uniform, iterations)  # type: ignore[arg-type]
    _check(run, wanted, {**how, "criterion": criterion}, plan, absorb)
    mending = Mending("" if plan else name, None if refit is False else {} if refit is True else refit, fold)
    found = groups(run.model, kinds)
    text = None if run.dry or run.calibration is None else calibration_batches(run)
    model = run.model
    if "width" in kinds and text is not None:
        model = measured(model, text, **place(run))
    at = Surroundings(text, run.original, run.unfinished, run.record, place(run), run.dry)
    decided = Decision(read_plan(plan, kinds)) if plan is not None else decide(model, wanted, mending, at)
    chosen = decided.plan
    check_mending(model, kinds, chosen, mending, exact=plan is not None or not run.dry)
    big = _absorbed(run, model, chosen, text) if absorb and text is not None else model
    small = cut(big, chosen)
    run.record.update(
        criterion=name if plan is None else None,
        removed=in_words(found, chosen, named=not run.dry),
        parameters=[model.tensors.parameters, small.tensors.parameters],
        bytes=[model.tensors.bytes, small.tensors.bytes],
        saved_as=small.config.model_type,
        architecture=small.architecture.__name__,
        notes=notes(
            model,
            small,
            found,
            chosen,
            ratio=ratio,
            count=count,
            scope=scope,
            budget=budget,
            landed=run.record.get("landed"),
        ),
    )
    if run.dry:
        if mending and run.calibration is None:
            raise PruneError("refit and fold look at data; give the recipe a calibration", where="refit")
        walks = (plan is None and needs_data(name)) + absorb
        if run.calibration is not None:
            shown = run.calibration if walks or mending else _proof_text(run)
            rehearsal.calibration(run.model, shown, seed=run.seed)
        run.record["needs"] = _needs(run, small, walks=walks)
    else:
        run.record["plan"] = chosen
        run.record["shape"] = [model.shape(), small.shape()]
        if decided.scores:
            run.record["scores"] = profile(found, decided.scores, chosen)
        batch = _proof_batch(run)
        run.record["proof"] = prove(big, chosen, small, batch, device=run.device, progress=run.progress)
        small = decided.small or mend(
            big, chosen, text, mending, original=run.original, found=model, record=run.record, **place(run)
        )
        run.warnings += warnings(run.record)
        run.record["parameters"][1], run.record["bytes"][1] = small.tensors.parameters, small.tensors.bytes
        run.record["saved_as"] = small.config.model_type
        run.record["architecture"] = small.architecture.__name__
    run.model = small


remove.reads = ("plan",)  # type: ignore[attr-defined]  # options that name files


def _criterion(given: str | dict[str, dict[str, Any]], seed: int) -> tuple[str, dict[str, Any]]:
    """A criterion's name and options, the run's seed among them where it takes one."""
    if isinstance(given, dict) and len(given) != 1:
        raise PruneError("give one criterion, as in {magnitude: {norm: l1}}", where="criterion")
    name, settings = (given, {}) if isinstance(given, str) else next(iter(given.items()))
    return name, {**({"seed": seed} if "seed" in options(name) else {}), **settings}


def _check(run: Run, wanted: Wanted, given: dict[str, Any], plan: str | None, absorb: bool) -> None:
    """PruneError for what the options and the recipe alone show to be wrong."""
    given |= {name: getattr(wanted, name) for name in ("ratio", "count", "budget", "uniform", "iterations")}
    parameters = inspect.signature(remove).parameters
    idle = [name for name in parameters if name in given and given[name] != parameters[name].default]
    check_amounts(wanted, idle=idle, plan=plan)
    if plan is None and needs_data(wanted.criterion) and run.calibration is None:
        raise PruneError(
            f"criterion {wanted.criterion!r} looks at data; give the recipe a calibration", where="criterion"
        )
    if absorb and "experts" not in wanted.kinds:
        raise PruneError("only experts are absorbed, and `what` has none; choices: what: experts", where="absorb")
    if absorb and run.calibration is None:
        raise PruneError("absorb weighs experts by their use; give the recipe a calibration", where="absorb")


def _absorbed(run: Run, model: Model, plan: Plan, text: Sequence[Batch]) -> Model:
    """The model whose dropped experts live on in the kept ones, each weighted by the gates that its tokens gave it."""
    found = [group for group in groups(model, "experts") if group.name in plan]
    return absorbed(model, plan, score(model, found, text, criterion="frequency", soft=True, **place(run)))


def _needs(run: Run, small: Model, *, walks: int) -> dict[str, float]:
    """What removing will take: the walk over the calibration data, the proof's two, and the new checkpoint."""
    windows, tokens = PROOF_TOKENS
    parts = [
        forecast.walking(run.model, tokens=windows * tokens, length=tokens, device=run.device, walks=2),
        forecast.writing(small),
    ]
    if walks and run.calibration is not None:
        count = run.calibration.samples * run.calibration.length
        length = run.calibration.length
        parts.append(forecast.walking(run.model, tokens=count, length=length, device=run.device, walks=walks))
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
