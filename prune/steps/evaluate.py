"""`evaluate`: measure the model as it now is beside the recipe's original."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from prune import forecast, rehearsal
from prune.evaluation.evaluate import evaluate as measure
from prune.run import Run
from prune.steps._common import Positive, place


def evaluate(
    run: Run,
    *,
    perplexity: str | None = None,
    accuracy: str | None = None,
    label: str | None = None,
    length: Annotated[int, Field(ge=2)] = 256,
    stride: Positive | None = None,
    samples: Positive | None = None,
    field: str | None = None,
    split: str | None = None,
    speed: bool = False,
) -> None:
    """Measure the model as it now is beside the recipe's original: size, perplexity, accuracy, latency.

    perplexity: text to measure on: a builtin (its held-out part), a local file, or a Hub dataset id.
    accuracy: labelled examples, for classifiers of texts, words and images and for pairs of texts; text, for a model of
        masked words. A local file or a Hub dataset.
    label: the column that holds the class, the tags or the target text; `field` holds the input.
    length: tokens in a window, and the most of an example.
    stride: new tokens in each window, after context that is not counted; all but one when left out.
    samples: at most this many windows; all of them when left out.
    field: the text field of a .jsonl, .parquet or Hub dataset.
    split: the split of a Hub dataset.
    speed: measure the latency of one forward pass, both models alternating.
    """
    before, after = run.original, run.model
    run.record["parameters"] = [before.tensors.parameters, after.tensors.parameters]
    run.record["bytes"] = [before.tensors.bytes, after.tensors.bytes]
    if run.dry:
        if accuracy is not None:
            rehearsal.accuracy(before, accuracy, length=length, field=field, split=split, label=label)
        if perplexity is not None:
            numbers: dict[str, Any] = {"length": length, "stride": stride, "samples": samples}
            rehearsal.evaluation(before, perplexity, **numbers, field=field, split=split)
        measured = perplexity is not None or accuracy is not None
        tokens = (samples or 256) * length if measured else 0  # of the whole text not more is known
        walks = forecast.walking(before, tokens=tokens, length=length, device=run.device, walks=2)
        run.record["needs"] = walks
        if speed:
            loaded = forecast.whole(before, copies=2, tokens=0, device=run.device)
            run.record["needs"] = forecast.together(walks, loaded)
        return
    found = measure(
        {"before": before, "after": after},
        perplexity=perplexity,
        accuracy=accuracy,
        label=label,
        length=length,
        stride=stride,
        samples=samples,
        field=field,
        split=split,
        speed=speed,
        seed=run.seed,
        **place(run),
    )
    run.record.update({name: found[name] for name in ("perplexity", "accuracy") if name in found})
    if "latency" in found:
        run.timings.update(found["latency"], latency_seconds=list(found["latency"]["latency_seconds"].values()))


evaluate.data = ("perplexity", "accuracy")  # type: ignore[attr-defined]  # options that name text
evaluate.calibrated = False  # type: ignore[attr-defined]  # never looks at the calibration data
