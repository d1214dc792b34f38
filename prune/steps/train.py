"""`train`: train the model on text, instructions or preferences, without a teacher."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from prune import instructions
from prune.errors import PruneError
from prune.recovery import align
from prune.recovery.recover import Loss
from prune.recovery.recover import check as check_recovery
from prune.recovery.settings import Training
from prune.recovery.train import train as learn
from prune.run import Run
from prune.steps._common import Positive
from prune.steps._training import (
    HELD_OUT,
    LENGTH,
    MOST,
    OptimizerOptions,
    WeightOptions,
    leave,
    needs,
    refuse_same,
    split_of,
    text,
    training_of,
)


def train(
    run: Run,
    *,
    objective: Literal["clm", "sft", "dpo"] = "clm",
    steps: Positive = 200,
    data: str | None = None,
    field: str | None = None,
    split: str | None = None,
    held_out: str | None = None,
    samples: Positive | None = None,
    length: Annotated[int, Field(ge=2)] | None = None,
    batch_size: Positive = 8,
    accumulate: Positive = 1,
    weights: WeightOptions = "all",
    optimizer: OptimizerOptions = {},  # noqa: B006 - recipes bind it; it is never changed
    evaluate_every: Positive | None = None,
    patience: Positive | None = 5,
    checkpointing: bool = False,
    sharded: bool = False,
) -> None:
    """Train the model without a teacher; the weights best on held-out text are kept.

    objective: `clm` predicts what follows in text; `sft` learns the answers of instruction data, `dpo` to prefer the
        chosen answers of preference data, both by TRL (`pip install ".[align]"`).
    steps: how often the weights are changed.
    data: text, instructions (messages; instruction and output; prompt and completion), or preferences (prompt, chosen,
        rejected); the calibration text when left out.
    field: the text field of a .jsonl, .parquet or Hub dataset, of held-out text too.
    split: the split of a Hub dataset, of held-out data too.
    held_out: data to measure on; some of the data that is not trained on when left out.
    samples: windows or pairs, gone over as often as the steps need; as many as they need, at most 20000, when left out.
    length: tokens in a window; that of the calibration, else 512.
    batch_size: windows that go through the model at once, over all processes.
    accumulate: batches in a step.
    weights: what is trained: `all`, `norms` (and biases), or `lora`, as in `distill`.
    optimizer: as in `distill`.
    evaluate_every: steps between two looks at held-out data; a tenth of all when left out.
    patience: looks without a better one before training ends early; null never does.
    checkpointing: recompute activations in the backward pass instead of keeping them.
    sharded: spread weights, gradients and moments over all processes (FSDP), for `clm`.
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
    if objective == "clm":
        check_recovery(run.model, None, loss=Loss({"logits": 1.0}), training=training)
    else:
        align.check(run.model, training)
    if objective == "dpo":
        _prefer(run, data, split, held_out, samples, length, training)
        return
    rows, others = text(
        run,
        source=data,
        chat=objective == "sft",
        held_out=held_out,
        samples=samples,
        length=length,
        training=training,
        field=field,
        split=split,
    )
    kept: dict[str, Any] = {"folder": run.unfinished, "progress": run.progress}
    if run.dry:
        run.record["needs"] = needs(run, None, training, length)
    elif objective == "sft":
        leave(run, align.tune(run.model, rows, others, training=training, **kept))
    else:
        leave(run, learn(run.model, rows, held_out=others, training=training, **kept))


def _prefer(
    run: Run,
    source: str | None,
    split: str | None,
    held_out: str | None,
    samples: int | None,
    length: int | None,
    training: Training,
) -> None:
    if source is None:
        raise PruneError("dpo learns from preferences; give the step `data`", where="data")
    apart = None
    if held_out is not None:
        refuse_same(source, held_out)
        apart = instructions.preferences(held_out, split=split_of(held_out, split))[:HELD_OUT]
    pairs = instructions.preferences(source, split=split)[: samples or MOST]
    aside = min(HELD_OUT, max(len(pairs) // 5, 1))
    if apart is None and len(pairs) < 2:
        raise PruneError("gives 1 pair; one is trained on and another held out", where="data")
    rows, others = (pairs[:-aside], pairs[-aside:]) if apart is None else (pairs, apart)
    long = length or LENGTH
    if run.dry:
        run.record["needs"] = needs(run, run.model, training, long)
        return
    kept: dict[str, Any] = {"folder": run.unfinished, "progress": run.progress}
    leave(run, align.align(run.model, rows, others, training=training, length=long, **kept))


train.data = ("data", "held_out")  # type: ignore[attr-defined]
train.distributed = True  # type: ignore[attr-defined]  # all processes take part
