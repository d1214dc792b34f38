"""What the steps that train share: their options, the text they train on, and what they leave behind."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from typing_extensions import TypedDict

from prune import data, forecast, instructions, rehearsal
from prune.errors import PruneError
from prune.model.model import Model
from prune.model.open import open as open_model
from prune.recovery.objective import Batch
from prune.recovery.recover import Trained
from prune.recovery.settings import Optimizer, Training
from prune.recovery.weights import Lora, Weights
from prune.run import CALIBRATION, Run, of_calibration
from prune.steps._common import Positive, given

HELD_OUT = 32  # windows
MOST = 20_000  # windows that are drawn without being asked for: they lie in memory
LENGTH = 512
Number = Annotated[float, Field(gt=0)]
Part = Annotated[float, Field(ge=0, le=1)]


class LoraOptions(TypedDict, total=False):
    """Low-rank additions to linears."""

    rank: Positive
    alpha: Positive
    targets: Annotated[list[str], Field(min_length=1)]


class OptimizerOptions(TypedDict, total=False):
    """How weights are changed."""

    name: Literal["adamw", "adafactor", "sgd"]
    learning_rate: Number
    schedule: Literal["cosine", "linear", "constant"]
    warmup: Part
    weight_decay: Annotated[float, Field(ge=0)]
    clip: Annotated[float, Field(ge=0)]


WeightOptions = Literal["all", "norms", "lora"] | Annotated[dict[Literal["lora"], LoraOptions], Field(min_length=1)]


def chosen_weights(options: WeightOptions) -> Weights:
    if isinstance(options, dict):
        settings: dict[str, Any] = dict(options.get("lora", {}))
        if "targets" in settings:
            settings["targets"] = tuple(settings["targets"])
        return Lora(**settings)
    return Lora() if options == "lora" else options


def training_of(run: Run, *, weights: WeightOptions, optimizer: OptimizerOptions, **numbers: Any) -> Training:
    """The settings that options make; `numbers` are passed on as they are."""
    return Training(
        weights=chosen_weights(weights),
        optimizer=Optimizer(**optimizer),
        autocast=autocast(run.device, run.dtype),
        seed=run.seed,
        device=run.device,
        processes=run.processes,
        local=run.local,
        **numbers,
    )


def autocast(device: str, dtype: str) -> torch.dtype | None:
    """What matrix products are made in: as asked; by itself float32 on a CPU and bfloat16 on a GPU."""
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    return None if dtype == "float32" else getattr(torch, dtype)


def text(
    run: Run,
    *,
    source: str | None,
    chat: bool,
    held_out: str | None,
    samples: int | None,
    length: int | None,
    training: Training,
    field: str | None,
    split: str | None,
) -> tuple[list[Batch], list[Batch]]:
    """Windows to train on and windows to measure on, none of them in both; in a dry run as many as tell of slips."""
    known, calibrated = run.calibration, source is None
    theirs = {"field": field, "split": split_of(held_out, split)}  # where the held-out text is, of its own source
    if source is None:
        if known is None:
            raise PruneError("training looks at text; give the step `data`, or the recipe a calibration", where="data")
        source, field, split = known.data, field or known.field, split or known.split
    long = length or (known.length if known else LENGTH)
    rehearsal.fits(run.model, long, where="length" if length else "calibration.length")
    own = of_calibration if calibrated else nullcontext
    with own():
        data.check(source, split=split)
    if held_out is not None:
        refuse_same(source, held_out)
        data.check(held_out, split=theirs["split"])
    if chat and data.PYTHON_DOCS in (source, held_out):
        raise PruneError(f"{data.PYTHON_DOCS} holds no instructions; name a file or a Hub dataset", where="data")
    if run.dry and not data.is_file(source):
        return [], []
    want = 1 if run.dry else samples or min(training.steps * training.per_step, MOST)
    options: dict[str, Any] = {"length": long, "seed": run.seed, "batch_size": 1}
    tokenizer = run.model.tokenizer()

    def draw(source: str, count: int, **where: Any) -> list[Batch]:
        if chat:
            return instructions.batches(source, tokenizer, samples=count, split=where.get("split"), **options)
        streaming = bool(known and known.streaming and source == known.data)
        return data.batches(
            source, tokenizer, samples=count, up_to=True, streaming=streaming, **given(where), **options
        )

    if held_out is not None:
        with own():
            rows = draw(source, want, field=field, split=split)
        if run.dry and not data.is_file(held_out):
            return rows, []
        return rows, draw(held_out, 1 if run.dry else HELD_OUT, **theirs)
    with own():
        rows = draw(source, want + (1 if run.dry else HELD_OUT), field=field, split=split)
    if len(rows) < 2:
        raise PruneError(
            f"gives 1 window of {long} tokens; one is trained on and another held out: take a shorter length",
            where=CALIBRATION if calibrated else "data",
        )
    aside = min(HELD_OUT, max(len(rows) // 5, 1))
    return rows[:-aside], rows[-aside:]


def refuse_same(source: str, held_out: str) -> None:
    """PruneError for held-out data that are trained on."""
    files = data.is_file(source) and data.is_file(held_out)
    if source == held_out or (files and Path(source).resolve() == Path(held_out).resolve()):
        raise PruneError(
            f"{held_out} is what is trained on; name other data, or leave it out and some of them are not trained on",
            where="held_out",
        )


def split_of(held_out: str | None, split: str | None) -> str | None:
    """The split that held-out data are drawn from; a file has none."""
    return None if held_out is None or data.is_file(held_out) else split


def needs(run: Run, teacher: Model | None, training: Training, length: int | None) -> dict[str, float]:
    """What a training will take: five copies of what is trained, the teacher, and the time of all its tokens."""
    long = length or (run.calibration.length if run.calibration else LENGTH)
    tokens = training.steps * training.per_step * long
    return forecast.training(run.model, teacher, tokens=tokens, windows=training.batch_size * long, device=run.device)


def leave(run: Run, trained: Trained) -> None:
    """Puts what came out into the run; nothing came out of a process that only helped."""
    if not trained.record:
        return
    before = run.model.tensors
    run.record["training"] = trained.record
    run.record["parameters"] = [before.parameters, trained.model.tensors.parameters]
    run.record["bytes"] = [before.bytes, trained.model.tensors.bytes]
    run.timings.update(trained.timings)
    run.model = trained.model
    if trained.record["kept_start"]:
        run.warnings.append("training did not lower the loss on held-out text: the model is as it was")
    else:
        run.record["saved_as"] = trained.model.config.model_type
        run.record["architecture"] = trained.model.architecture.__name__


def printed(source: str) -> Any:
    """What tells one teacher from another: its files' hashes, or the name of a Hub model that is not here yet."""
    model = open_model(source, headers=True)
    return dict(model.fingerprint()) if model.weights else source
