"""Models measured side by side: size, perplexity, accuracy, speed, tasks, and what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from prune.data import describe, longest_stride, windows
from prune.errors import PruneError
from prune.evaluation import tasks as scorers
from prune.evaluation.accuracy import accuracy as answer
from prune.evaluation.benchmark import Speed, benchmark, shortened
from prune.evaluation.generations import generate as speak
from prune.evaluation.perplexity import perplexity as measure
from prune.labels import labelled, task
from prune.measure import compute_dtype, flops_per_token
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
    documents: str = "joined",
    speed: bool | Speed = False,
    graphs: Mapping[str, Sequence[Path]] | None = None,
    tasks: str | Sequence[str] | None = None,
    shots: int | Sequence[int] | None = None,
    limit: int | None = None,
    kmmlu: scorers.Kmmlu | None = None,
    generate: Sequence[str] = (),
    tokens: int = 48,
    batch_size: int = 8,
    device: str = "cpu",
    dtype: str | torch.dtype | None = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """One number per model of: `parameters`, `bytes`, `flops` (per token at a context of 1024), and what is asked for.

    `perplexity` is text as `prune.windows` takes it: a builtin (its held-out part), a local file, a Hub dataset,
    "wikitext" or "c4". It is tokenised by the first model's tokenizer and cut into windows of `length` tokens, `stride`
    of them new (all but one when left out); each token counts once. `documents` are "joined" or "separate". `accuracy`
    is a labelled data set as `prune.examples` takes it (`field` and `label` are its columns), or text for a model of
    masked words; the loss stands beside it. What was measured on stands beside the numbers. Models whose vocabularies
    differ are refused.

    `speed` is True, or a mapping of `batch` and `length` (numbers or lists), `new` tokens after each prompt, `seconds`
    to measure each for, and `memory` (False leaves out the peaks, which take a process each). `graphs` are exported
    model.onnx files by the models' names. `tasks` are kmmlu and names that lm-eval knows, with `shots` solved questions
    and at most `limit` questions; `kmmlu` says which of its questions: `data` (a folder of CSV files), `subjects`,
    `scorer`. `generate` are prompts, continued greedily by `tokens` tokens. `dtype` is what is computed in: "auto"
    (float32 on a CPU, as stored on a GPU), "float32", "bfloat16", "float16", or None, as the weights are stored.
    Raises PruneError for what cannot be read, run or is unknown.
    """
    named = {"model": models} if isinstance(models, Model) else dict(models)
    place: dict[str, Any] = {"device": device, "dtype": compute_dtype(device, dtype)}
    result: dict[str, Any] = {
        "parameters": {name: model.tensors.parameters for name, model in named.items()},
        "bytes": {name: model.tensors.bytes for name, model in named.items()},
        "flops": {name: flops_per_token(model) for name, model in named.items()},
    }
    source = source_of(split, field)
    if perplexity is not None:
        cuts: dict[str, Any] = {"length": length, "stride": stride, "samples": samples, "documents": documents}
        result["perplexity"] = _perplexity(named, perplexity, cuts, source, **place, progress=progress)
    if accuracy is not None:
        how = {"length": length, "samples": samples, "label": label, "seed": seed}
        result["accuracy"] = _accuracy(named, accuracy, how, source, **place, progress=progress)
    if speed:
        asked: Speed = {} if isinstance(speed, bool) else speed
        result["speed"] = benchmark(named, graphs or {}, asked, **place, seed=seed, progress=progress)
        result["warnings"] = shortened(asked, result["speed"])
    wanted = scorers.listed(tasks, kmmlu)
    if wanted or generate:
        scoring: dict[str, Any] = {
            "shots": shots,
            "limit": limit,
            "questions": kmmlu,
            "batch_size": batch_size,
            "seed": seed,
        }
        result |= _said(named, wanted, scoring, generate, tokens, **place, progress=progress)
    return result


def source_of(split: str | None, field: str | None) -> dict[str, Any]:
    """Where in a data set the text stands, as far as it was said."""
    return {key: value for key, value in {"split": split, "field": field}.items() if value is not None}


def _perplexity(
    named: Mapping[str, Model], text: str, cuts: dict[str, Any], source: dict[str, Any], **place: Any
) -> dict[str, Any]:
    tokenizer = next(iter(named.values())).tokenizer()
    same_words(named)
    data = windows(text, tokenizer, **cuts, **source)
    found = {id(model): measure(model, data, **place) for model in named.values()}
    return {
        "data": describe(text, **source),
        "length": cuts["length"],
        "stride": cuts["stride"] or longest_stride(tokenizer, cuts["length"]),
        "documents": cuts["documents"],
        "tokens": next(iter(found.values()))["tokens"],
        **{name: found[id(model)]["perplexity"] for name, model in named.items()},
    }


def same_words(named: Mapping[str, Model]) -> None:
    """PruneError where another model's tokens have other numbers: all are given the first one's."""
    (first, given), *rest = named.items()
    others = [(name, model) for name, model in rest if model.files != given.files and _has_tokenizer(model)]
    words = given.tokenizer().get_vocab() if others and _has_tokenizer(given) else {}
    for name, model in others:
        own = model.tokenizer().get_vocab()
        if differing := sum(own.get(word) != number for word, number in words.items()):
            raise PruneError(
                f"{name} and {first} differ in {differing:,} of {len(words):,} tokens of their vocabularies, so that "
                "no number per token compares them; measure each by itself",
                where=model.source,
            )


def _has_tokenizer(model: Model) -> bool:
    return any(name.startswith("tokenizer") for name in model.files)


def _accuracy(
    named: Mapping[str, Model], data: str, how: dict[str, Any], source: dict[str, Any], **place: Any
) -> dict[str, Any]:
    first = next(iter(named.values()))
    same_words(named)
    asked = labelled(first, data, **how, **source)
    answers = {id(model): answer(model, asked, **place) for model in named.values()}
    return {
        "data": describe(data, **source),
        "task": task(first),
        "labels": next(iter(answers.values()))["labels"],
        **{name: {key: answers[id(model)][key] for key in ("accuracy", "loss")} for name, model in named.items()},
    }


def _said(
    named: Mapping[str, Model],
    wanted: Sequence[str],
    how: dict[str, Any],
    prompts: Sequence[str],
    tokens: int,
    *,
    device: str,
    dtype: torch.dtype | None,
    progress: Progress | None,
) -> dict[str, Any]:
    """`tasks` and `generations`, each model loaded whole, one after the other, and once."""
    scores: dict[int, Any] = {}
    texts: dict[int, list[str]] = {}
    for model in {id(model): model for model in named.values()}.values():
        module, tokenizer = load(model, device=device, dtype=dtype).eval(), model.tokenizer()
        if wanted:
            scores[id(model)] = scorers.score(module, tokenizer, wanted, **how, progress=progress)
        texts[id(model)] = speak(module, tokenizer, prompts, tokens=tokens)
        del module
    found: dict[str, Any] = {}
    if wanted:
        found["tasks"] = {name: scores[id(model)] for name, model in named.items()}
    if prompts:
        said = {name: texts[id(model)] for name, model in named.items()}
        found["generations"] = [
            {"prompt": prompt, **{name: own[number] for name, own in said.items()}}
            for number, prompt in enumerate(prompts)
        ]
    return found
