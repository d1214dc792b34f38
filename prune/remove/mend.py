"""Mending a cut: making up for what went, by refit, by folding, or as the criterion's own method does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from prune.errors import PruneError
from prune.model.groups import HALVES, Group
from prune.model.model import Model
from prune.model.overlay import Changes
from prune.model.walk import Batch
from prune.remove.at_once import Choosing, Cut, score_and_refit
from prune.remove.compensate import How, compensate
from prune.remove.cut import cut
from prune.remove.refit import refit

COMPENSATED: dict[str, How] = {"flap": "bias", "obs": "weights"}  # criterion -> what its own method does after a cut
WHOLE = ("layers", "width", *HALVES)  # kinds whose cuts those methods say nothing about
SHORTFALLS = {  # what is noted of linears by name -> what a step warns of
    "few_tokens": "fewer calibration tokens than unknowns in {count} linears ({first} first): damped",
    "raised": "damping had to be raised in {count} linears ({first} first): their inputs' Gram was singular",
}


@dataclass(frozen=True)
class Mending:
    """What is done after a cut: `refit` with its options, `fold`, or the `criterion`'s own way; any may be nothing."""

    criterion: str = ""
    refit: Mapping[str, Any] | None = None
    fold: bool = False

    @property
    def opens(self) -> bool:
        """Whether biases are added where the stock config has slots for them."""
        if self.refit is not None:
            return bool(self.refit.get("intercept", True))
        return not self.fold and COMPENSATED.get(self.criterion) == "bias"

    def __bool__(self) -> bool:
        return self.refit is not None or self.fold or self.criterion in COMPENSATED


def check_mending(
    model: Model, kinds: Sequence[str], plan: Mapping[str, Sequence[int]], mending: Mending, *, exact: bool
) -> None:
    """PruneError for layers that cannot be folded into the one before them, as refit and fold do, and for none to fold.

    `exact` says that the plan names the layers that go, and not only how many.
    """
    if mending.fold and "layers" not in kinds:
        raise PruneError("only whole layers are folded, and `what` has none; choices: what: layers", where="fold")
    count = model.numbers["layers"]
    kept = plan.get("layers", range(count))
    if len(kept) == count or (mending.refit is None and not mending.fold):
        return
    before = [layer for layer in kept if layer + 1 < count and layer + 1 not in kept] if exact else range(count)
    found = [unfoldable(model, layer) for layer in before]
    if (any if exact else all)(found) and found:
        why = next(reason for reason in found if reason)
        raise PruneError(
            f"layers cannot be dropped with refit or fold: {why}; drop them in a step without",
            where="fold" if mending.fold else "refit",
        )


def unfoldable(model: Model, layer: int) -> str:
    """Why what follows a layer cannot be folded into its last output linear, as its family has it; "" where it can."""
    family = model.family
    if not family.residual:
        return f"in {family.model_type} a norm follows each sum"
    if model.sizes(layer)["experts"]:
        return "experts have no one output linear"
    factor = getattr(model.config, family.rescales, None) if family.rescales else 1
    return "" if factor == 1 else f"{family.model_type}'s MLP output passes {family.rescales} before it is added"


def mend(
    model: Model,
    plan: Mapping[str, Sequence[int]],
    batches: Sequence[Batch] | None,
    mending: Mending,
    *,
    original: Model | None = None,
    found: Model | None = None,
    record: dict[str, Any],
    **place: Any,
) -> Model:
    """The model cut by a plan, and what it lost made up for; `place` are options of `walk`.

    Refit aims at `original` where it has the model's layers and width, else at the model as it was `found`, which is
    another where experts were absorbed before the cut. `record` is given what was done, and what `warnings` takes from
    it. Raises PruneError when there is something to do and no text to look at.
    """
    if not mending:
        return cut(model, plan)
    if batches is None:
        raise PruneError("refit and fold look at data; give the recipe a calibration", where="refit")
    if mending.refit is None and not mending.fold:
        if any(kind in plan for kind in WHOLE):
            return cut(model, plan)
        how, changes = COMPENSATED[mending.criterion], Changes.large(model.tensors.bytes)
        record["compensated"] = how
        done: dict[str, Any] = {}
        small = compensate(model, plan, batches, how=how, changes=changes, record=done, **place)
        note(record, done)
        return small
    options = dict(mending.refit or {})
    itself = found or model
    reference = original if options.pop("reference", "original") == "original" and original is not None else itself
    if any(reference.numbers[number] != model.numbers[number] for number in ("layers", "width")):
        note(record, {"warnings": ["refit against the model as this step found it: the original has other layers"]})
        reference = itself
    with _noted(record) as noted:
        return refit(
            model,
            plan,
            batches,
            reference=reference,
            fold_only=mending.refit is None,
            changes=Changes.large(model.tensors.bytes),
            record=noted,
            **options,
            **place,
        )


def mend_at_once(
    model: Model,
    groups: Sequence[Group],
    batches: Sequence[Batch],
    choosing: Choosing,
    mending: Mending,
    *,
    record: dict[str, Any],
    **place: Any,
) -> Cut:
    """Choose units and refit against the model itself in one walk, where `at_once.possible` says that it can be."""
    options = {name: value for name, value in (mending.refit or {}).items() if name != "reference"}
    changes = Changes.large(model.tensors.bytes)
    with _noted(record) as found:
        return score_and_refit(model, groups, batches, choosing, changes=changes, record=found, **options, **place)


@contextmanager
def _noted(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What a refit puts on record, and what it had too little of."""
    found: dict[str, Any] = {}
    record["refit"] = found
    yield found
    note(record, found)


def note(record: MutableMapping[str, Any], found: Mapping[str, Any]) -> None:
    """Add to a step's record what is to be warned of, each thing once however many rounds meet it."""
    for key in ("warnings", *SHORTFALLS):
        if new := [entry for entry in found.get(key, []) if entry not in record.get(key, [])]:
            record[key] = [*record.get(key, []), *new]


def warnings(record: MutableMapping[str, Any]) -> list[str]:
    """What was noted, as lines; it is taken out of the record."""
    said: list[str] = record.pop("warnings", [])
    short = {key: record.pop(key, []) for key in SHORTFALLS}
    return said + [SHORTFALLS[key].format(count=len(own), first=own[0]) for key, own in short.items() if own]
