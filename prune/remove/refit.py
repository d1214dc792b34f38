"""Refit: after a cut, every output linear is solved anew, in closed form, for what it gave in the uncut model.

Both models are walked side by side, and layer after layer the linears that write to the residual stream are given the
weights that, from what the pruned stream now feeds them, come closest to the uncut model's outputs: ridge least squares
toward the old weights, an idea as old as the optimal brain surgeon (https://arxiv.org/abs/2402.07033 and
https://arxiv.org/abs/2310.06694 among those who apply it to transformers). Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor

from prune.errors import PruneError
from prune.model import slots
from prune.model.config import stacks
from prune.model.model import Model
from prune.model.overlay import Changes, changed
from prune.model.walk import Batch, Visit, logits, walk
from prune.progress import Progress
from prune.remove.cut import checked, cut, halves, positions
from prune.remove.cut import layers as kept_layers
from prune.remove.divergence import divergence
from prune.remove.layerfit import DEFAULT_DAMPING, Linears, Settings, Solved, Work, solved
from prune.remove.looked import look
from prune.remove.stages import stages

Target = Literal["auto", "dense", "pruned", "residual"]
TRIALS: tuple[Target, ...] = ("dense", "residual")  # "pruned" was never the best of the three
TRIAL_WINDOWS = (8, 4)  # windows that a trial of targets is fitted and judged on, at most; and at most 1/4 of all


SHARES = {"dense": 0.0, "residual": 1.0, "pruned": 0.0}


def refit(
    model: Model,
    plan: Mapping[str, Sequence[int]],
    batches: Sequence[Batch],
    *,
    reference: Model | None = None,
    target: Target = "auto",
    linears: Linears = "outputs",
    damping: float | None = None,
    intercept: bool = True,
    rounds: int = 0,
    fold_only: bool = False,
    changes: Changes | None = None,
    record: dict[str, Any] | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> Model:
    """Cut `model` as `plan` says and solve its output linears anew against `reference` (default: `model` uncut).

    `batches` are calibration batches of token ids (batch, length). `target` is what a linear should give: "dense", its
    output in the reference; "residual", that and all that the pruned stream has missed so far; "pruned", what the uncut
    layer gives for the pruned stream; "auto", whichever leaves the least KL divergence on held-out windows. `linears`
    "all" also solves what feeds the output linears (q, k, v, gate, up), against their outputs in the reference.
    `damping` is the ridge toward the old weights, a multiple of the mean of the Gram's diagonal; None picks it for each
    linear on held-out batches. With `intercept` biases are solved too where the stock config has a slot.

    With `rounds` of Gauss-Newton an MLP's linears are then fitted together to what its output should be: much nearer,
    in some thirty times the time, and with what enters and should leave the MLP in memory.

    Where a plan drops layers, the output linear before them is solved for what leaves them, so that they are folded
    into it; with `fold_only` nothing else is solved, and no bias is added. New weights go into `changes` (default:
    memory), and `record` is given what was chosen and what had to be raised. Sums are float32 or better whatever
    `dtype` (None: as stored) computes. Raises PruneError when the reference has other layers than the model.
    """
    reference = model if reference is None else reference
    _check_reference(model, reference)
    record = {} if record is None else record
    small = cut(model, plan)
    small = slots.opened(small) if intercept and not fold_only else small
    place: dict[str, Any] = {"device": device, "dtype": dtype}
    common: dict[str, Any] = {"linears": linears, "damping": damping, "intercept": intercept, "rounds": rounds}
    only = _before_dropped(model, plan) if fold_only else None
    if only is not None:
        target = "residual"
    narrower = _width(model, plan) is not None
    if narrower and target == "pruned":
        raise PruneError("the uncut layers cannot take a narrower stream; choose dense or residual", where="target")
    if target == "auto":
        target = best_target(model, reference, small, plan, batches, common, record, place)
    record.update(
        target=target, linears=linears, intercept=small.tensors.parameters > cut(model, plan).tensors.parameters
    )
    settings = Settings(SHARES[target], target == "pruned", only=only, **common)
    return fitted(model, reference, small, plan, batches, settings, changes or Changes(), record, place, progress)


def _check_reference(model: Model, reference: Model) -> None:
    for number in ("layers", "width"):
        if model.numbers[number] != reference.numbers[number]:
            raise PruneError(
                f"the reference has {reference.numbers[number]} {number}, the model {model.numbers[number]};"
                " refit against the step's own input",
                where="refit",
            )


def _before_dropped(model: Model, plan: Mapping[str, Sequence[int]]) -> frozenset[int]:
    """The kept layers that are followed by dropped ones."""
    layers = kept_layers(model, plan)
    found = frozenset(layer for layer in layers if _end(model, layers, layer) > layer)
    if not found:
        raise PruneError("nothing to fold: no kept layer comes before a dropped one", where="fold")
    return found


def best_target(
    model: Model,
    reference: Model,
    small: Model,
    plan: Mapping[str, Sequence[int]],
    batches: Sequence[Batch],
    common: Mapping[str, Any],
    record: dict[str, Any],
    place: Mapping[str, Any],
) -> Target:
    """The target whose refit on some windows leaves the least divergence on others.

    Trials solve the output linears alone, with a damping of their own where none is given: they cost little, and rank
    the targets as the whole refit does.
    """
    fit, judge = trial_windows(batches)
    if not fit:
        return "residual"
    found: dict[str, float] = {}
    expected = list(logits(reference, judge, **place))
    damping = DEFAULT_DAMPING if common["damping"] is None else common["damping"]
    for name in TRIALS:
        settings = Settings(SHARES[name], False, "outputs", damping, common["intercept"])
        trial = fitted(model, reference, small, plan, fit, settings, Changes(), {}, place, None)
        found[name] = divergence(trial, reference, judge, expected=expected, **place)
    record["divergence"] = found
    return min(TRIALS, key=found.__getitem__)


def trial_windows(batches: Sequence[Batch], most: tuple[int, int] = TRIAL_WINDOWS) -> tuple[list[Batch], list[Batch]]:
    """Windows to fit a trial on and others to judge it on; none when there are too few."""
    total = sum(
        len(batch["input_ids"]) if "input_ids" in batch else len(next(iter(batch.values()))) for batch in batches
    )
    fit, judge = (min(bound, total // 4) for bound in most)
    return (taken(batches, 0, fit), taken(batches, fit, fit + judge)) if fit and judge else ([], [])


def taken(batches: Sequence[Batch], start: int, stop: int) -> list[Batch]:
    """Windows `start` to `stop` of all batches, as batches."""
    found, seen = [], 0
    for batch in batches:
        size = len(next(iter(batch.values())))
        low, high = max(start - seen, 0), min(stop - seen, size)
        if low < high:
            found.append({key: value[low:high] for key, value in batch.items()})
        seen += size
    return found


Arrive = Callable[[Visit, Callable[[int], Tensor]], None]


def fitted(
    model: Model,
    reference: Model,
    small: Model,
    plan: Mapping[str, Sequence[int]],
    batches: Sequence[Batch],
    settings: Settings,
    changes: Changes,
    record: dict[str, Any],
    place: Mapping[str, Any],
    progress: Progress | None = None,
    arrive: Arrive | None = None,
) -> Model:
    """`small`, the cut of `model`, with its linears solved anew in one walk along the reference.

    `arrive` is called in each layer of the reference before the cut one is read, with what runs a batch, and runs them
    all; it may still change which units of that layer the plan keeps, though not how many.
    """
    layers, gone = kept_layers(model, plan), halves(model, plan)
    width = _width(model, plan)
    uncut = walk(reference, batches, progress=progress, **place)
    cut_stream = walk(small, batches, **place)
    touched = reference.tensors is not model.tensors or width is not None
    additive: dict[str, bool] = {}
    for index, layer in enumerate(layers):
        dense = next(visit for visit in uncut if visit.index == layer)
        if settings.own_stream:
            pruned = next(cut_stream)
            dense.inputs[:] = pruned.inputs
        end = _end(model, layers, layer)
        paths = [stage.linears[0].path for stage in stages(small, index, {}, width, inner=False)]
        paths = paths if settings.only is None else paths[-1:]
        before = settings.share != 1
        looked = None if arrive is None else look(dense, paths, additive, partial(arrive, dense), before=before)
        here = _within(model, plan, layer)
        touched = touched or bool(here) or end > layer or layer in gone
        wanted = touched and (settings.only is None or layer in settings.only)
        if wanted and looked is None:
            looked = look(dense, paths, additive, before=before)
        if looked is not None and settings.linears == "outputs":
            dense.free()  # it was run, and the cut layer needs the room
        if not settings.own_stream:
            pruned = next(cut_stream)
        if not wanted or looked is None:
            continue
        inner = settings.linears == "all" and _same_shapes(model, reference, layer)
        todo = stages(small, index, here, width, inner=inner)
        todo = todo if settings.only is None else [stage for stage in todo if stage.output][-1:]
        work = Work(dense, pruned, uncut, end, settings, looked, additive, width, model.family.sublayers)
        for found in _placed(reference.layer(layer), solved(work, todo)):
            _keep(changes, record, small, small.layer(index), found)
        pruned.run()
        pruned.free()  # or it would stay in memory beside the next layer
        del dense, pruned, looked, work
    for _ in chain(uncut, cut_stream):  # what was dropped may come last; the uncut walk knows layers by their own names
        pass
    return changed(small, changes)


def _placed(layer: str, found: Iterator[Solved]) -> Iterator[Solved]:
    """What is found, with the layer named where it fails."""
    try:
        yield from found
    except PruneError as error:
        raise error.at(layer) from error


def _width(model: Model, plan: Mapping[str, Sequence[int]]) -> Tensor | None:
    """The positions of the hidden state that stay, None when all do."""
    kept = plan.get("width", range(model.numbers["width"]))
    return torch.tensor(list(kept)) if len(kept) < model.numbers["width"] else None


def _within(model: Model, plan: Mapping[str, Sequence[int]], layer: int) -> dict[str, Mapping[int, Tensor]]:
    """Kept positions of one layer's parameters, by their name in the layer."""
    own = {name: kept for name, kept in plan.items() if not name.startswith("layers.") or f".{layer}." in name}
    root = f"{model.layer(layer)}."
    kept = positions(model, checked(model, own), own)
    return {name.removeprefix(root): dims for name, dims in kept.items() if name.startswith(root)}


def _end(model: Model, layers: Sequence[int], layer: int) -> int:
    """The last of the dropped layers that follow a kept one, or the layer itself."""
    stack = next(stack for stack in stacks(model) if layer in stack)
    later = [other for other in layers if other > layer and other in stack]
    return (later[0] if later else stack[-1] + 1) - 1


def _same_shapes(model: Model, reference: Model, layer: int) -> bool:
    return model.sizes(layer) == reference.sizes(layer)


def _keep(changes: Changes, record: dict[str, Any], small: Model, root: str, found: Solved) -> None:
    """Put a linear's new weights, as they are stored, among the changes, and what had to be done for them on record."""
    name = f"{root}.{found.path}"
    for leaf, value in found.values.items():
        changes.put(f"{name}.{leaf}", value.to(small.tensors.info[f"{name}.{leaf}"].dtype))
    record.setdefault("dampings", {})[name] = found.damping
    if found.raised:
        record.setdefault("raised", []).append(name)
    if found.tokens < found.inputs:
        record.setdefault("few_tokens", []).append(name)
