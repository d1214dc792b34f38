"""Models measured side by side: size, perplexity on stated text, and latency in one alternated run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from prune.data import describe, longest_stride, windows
from prune.evaluation.accuracy import accuracy as answer
from prune.evaluation.perplexity import perplexity as measure
from prune.evaluation.speed import forward_latency
from prune.labels import labelled, task
from prune.model.model import Model
from prune.model.save import load
from prune.progress import Progress


def evaluate(
    models: Model | Mapping[str, Model],
    *,
    perplexity: str | None = None,
    accuracy: str | None = None,
    label: str | None = None,
    length: int = 256,
    stride: int | None = None,
    samples: int | None = None,
    field: str | None = None,
    split: str | None = None,
    speed: bool = False,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """One number per model of: `parameters`, `bytes`, and where asked for `perplexity`, `accuracy` and `latency`.

    `perplexity` is text as `prune.windows` takes it: a builtin (its held-out part), a local file, a Hub dataset. It is
    tokenised by the first model's tokenizer and cut into windows of `length` tokens, `stride` of them new (all but one
    when left out); each token counts once. `accuracy` is a labelled data set as `prune.examples` takes it (`field` and
    `label` are its columns), or text for a model of masked words; the loss stands beside it. What was measured on
    stands beside the numbers. `dtype` None computes in the stored type. Raises PruneError as `prune.windows` does.
    """
    named = {"model": models} if isinstance(models, Model) else dict(models)
    result: dict[str, Any] = {
        "parameters": {name: model.tensors.parameters for name, model in named.items()},
        "bytes": {name: model.tensors.bytes for name, model in named.items()},
    }
    place: dict[str, Any] = {"device": device, "dtype": dtype}
    if perplexity is not None:
        tokenizer = next(iter(named.values())).tokenizer()
        source = source_of(split, field)
        data = windows(perplexity, tokenizer, length=length, stride=stride, samples=samples, **source)
        found = {id(model): measure(model, data, progress=progress, **place) for model in named.values()}
        result["perplexity"] = {
            "data": describe(perplexity, **source),
            "length": length,
            "stride": stride or longest_stride(tokenizer, length),
            "tokens": next(iter(found.values()))["tokens"],
            **{name: found[id(model)]["perplexity"] for name, model in named.items()},
        }
    if accuracy is not None:
        first = next(iter(named.values()))
        asked = labelled(
            first, accuracy, length=length, samples=samples, label=label, seed=seed, **source_of(split, field)
        )
        answers = {id(model): answer(model, asked, progress=progress, **place) for model in named.values()}
        result["accuracy"] = {
            "data": describe(accuracy, **source_of(split, field)),
            "task": task(first),
            "labels": next(iter(answers.values()))["labels"],
            **{name: {key: answers[id(model)][key] for key in ("accuracy", "loss")} for name, model in named.items()},
        }
    if speed:
        loaded = {name: load(model, **place) for name, model in named.items()}
        result["latency"] = forward_latency(loaded, seed=seed)
    return result


def source_of(split: str | None, field: str | None) -> dict[str, Any]:
    """Where in a data set the text stands, as far as it was said."""
    return {key: value for key, value in {"split": split, "field": field}.items() if value is not None}
