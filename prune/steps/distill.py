"""`distill`: train the model against the one it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypedDict

from prune.model.open import open as open_model
from prune.recovery.cache import Cache
from prune.recovery.distill import distill as learn
from prune.recovery.hidden import Hidden, kept_layers
from prune.recovery.logits import Logits
from prune.recovery.recover import Loss
from prune.recovery.recover import check as check_recovery
from prune.run import Run
from prune.steps._common import Positive
from prune.steps._training import (
    Number,
    OptimizerOptions,
    Part,
    WeightOptions,
    leave,
    needs,
    printed,
    text,
    training_of,
)


class LogitOptions(TypedDict, total=False):
    """How logits are compared."""

    divergence: Literal["forward", "reverse", "jsd", "tvd"]
    temperature: Number
    alpha: Part
    beta: Annotated[float, Field(gt=0, lt=1)]


class HiddenOptions(TypedDict, total=False):
    """How hidden states are compared."""

    distance: Literal["mse", "cosine"]
    layers: Annotated[dict[int, int], Field(min_length=1)]


class CacheOptions(TypedDict, total=False):
    """Where a teacher's logits are kept."""

    folder: str
    top: Positive


def distill(
    run: Run,
    *,
    loss: Literal["logits", "hidden"]
    | Annotated[dict[Literal["logits", "hidden"], Number], Field(min_length=1)] = "logits",
    teacher: str | None = None,
    logits: LogitOptions = {},  # noqa: B006 - recipes bind it; it is never changed
    hidden: HiddenOptions = {},  # noqa: B006
    cache: str | CacheOptions | None = None,
    steps: Positive = 200,
    data: str | None = None,
    field: str | None = None,
    split: str | None = None,
    chat: bool = False,
    held_out: str | None = None,
    samples: Positive | None = None,
    length: Annotated[int, Field(ge=2)] | None = None,
    batch_size: Positive = 8,
    accumulate: Positive = 1,
    weights: WeightOptions = "all",
    optimizer: OptimizerOptions = {},  # noqa: B006
    evaluate_every: Positive | None = None,
    patience: Positive | None = 5,
    checkpointing: bool = False,
    sharded: bool = False,
) -> None:
    """Train the model against a teacher, by default the recipe's original; the weights best on held-out text are kept.

    loss: what is compared: `logits`, `hidden` (states), or both with their weights, as in `{logits: 1, hidden: 0.1}`.
    teacher: a folder, `bundled` or a Hub id with the same tokenizer; the recipe's original model when left out.
    logits: how: `divergence` (forward, reverse, jsd, tvd), `temperature` (2), `alpha` (0.5: the share of the teacher,
        the rest is the text's), `beta` (0.5: of the teacher in what jsd compares with).
    hidden: how: `distance` (mse, cosine), `layers` (which of the teacher's each of the model's is compared with, as in
        `{0: 0, 1: 3}`; by the plans of earlier steps where they say so, else spread evenly).
    cache: a folder to keep the teacher's likeliest logits in, taken once, a layer of it in memory at a time; or
        `{folder: ..., top: 64}` with how many of each token.
    steps: how often the weights are changed.
    data: text to train on; the calibration text when left out.
    field: the text field of a .jsonl, .parquet or Hub dataset, of held-out text too.
    split: the split of a Hub dataset, of held-out text too.
    chat: the data are instructions: the chat template is laid over them, and answers alone are learnt.
    held_out: text to measure on; some windows of the data that are not trained on when left out.
    samples: windows of text, gone over as often as the steps need; as many as they need, at most 20000, when left out
        (set it, and `cache` serves other numbers of steps too).
    length: tokens in a window; that of the calibration, else 512.
    batch_size: windows that go through the model at once, over all processes.
    accumulate: batches in a step.
    weights: what is trained: `all`, `norms` (and biases), or `lora`, which is merged into the weights; its options as
        in `{lora: {rank: 16, alpha: 32, targets: [q_proj]}}`, every linear of the layers when no targets are given
        (experts that are fused into one tensor are none).
    optimizer: `name` (adamw, adafactor, sgd), `learning_rate` (0.2 / width, four times that for lora and norms),
        `schedule` (cosine, linear, constant), `warmup` (0.05 of the steps), `weight_decay` (0.01), `clip` (1).
    evaluate_every: steps between two looks at held-out text; a tenth of all when left out.
    patience: looks without a better one before training ends early; null never does.
    checkpointing: recompute activations in the backward pass instead of keeping them.
    sharded: spread weights, gradients and moments over all processes (FSDP).
    """
    training = training_of(
        run,
        weights=weights,
        optimizer=optimizer,
        steps=steps,
        batch_size=batch_size,
        accumulate=accumulate,
        evaluate_every=evaluate_every,
        patience=patience,
        checkpointing=checkpointing,
        sharded=sharded,
    )
    guide = run.original if teacher is None else open_model(teacher, headers=run.dry)
    kept = kept_layers(run.earlier) if teacher is None else None
    shares: dict[str, float] = {loss: 1.0} if isinstance(loss, str) else dict(loss)  # type: ignore[arg-type]
    compared: dict[str, Any] = {"logits": Logits(**logits), "hidden": Hidden(**hidden), "kept": kept}
    place = None if cache is None else _cache(cache)
    layers = check_recovery(run.model, guide, loss=Loss(shares, **compared), training=training, cache=place)
    if layers:
        run.record["layer_map"] = {str(own): other for own, other in layers.items()}
    rows, others = text(
        run,
        source=data,
        chat=chat,
        held_out=held_out,
        samples=samples,
        length=length,
        training=training,
        field=field,
        split=split,
    )
    if run.dry:
        run.record["needs"] = needs(run, guide if place is None else None, training, length)
        return
    options: dict[str, Any] = {"held_out": others, "training": training, "cache": place, "folder": run.unfinished}
    leave(run, learn(run.model, rows, teacher=guide, loss=shares, **compared, **options, progress=run.progress))


def _cache(given: str | CacheOptions) -> Cache:
    options: dict[str, Any] = {"folder": given} if isinstance(given, str) else dict(given)
    return Cache(Path(options.pop("folder", "teacher-logits")), **options)


distill.data = ("data", "held_out")  # type: ignore[attr-defined]
distill.prints = {"teacher": printed}  # type: ignore[attr-defined]
distill.distributed = True  # type: ignore[attr-defined]  # all processes take part
