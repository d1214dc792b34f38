"""What a dry run reads of data: the tokenizer and local files, so that a slip in them is known before any weight is.

A Hub model was opened by its headers alone in a dry run, and a Hub dataset is asked for nothing: of those only what
their names and numbers tell is known.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prune import data, labels
from prune.errors import PruneError
from prune.model.model import Model
from prune.run import Calibration, of_calibration


def evaluation(
    model: Model, source: str, *, length: int, stride: int | None, samples: int | None, **where: str | None
) -> None:
    """PruneError for what `data.windows` will refuse; `where` are `field` and `split`."""
    if (kind := labels.task(model)) != "next token":
        raise PruneError(
            f"perplexity is of models of the next token; this is one of {kind}: take accuracy", where="perplexity"
        )
    fits(model, length, where="length")
    data.check(source, split=where.get("split"))
    if model.weights:
        tokenizer = model.tokenizer()
        data.check_windows(tokenizer, length=length, stride=stride, samples=samples)
        if data.is_file(source):
            data.windows(source, tokenizer, length=length, stride=stride, samples=samples, **_given(where))


def accuracy(model: Model, source: str, *, length: int, label: str | None, **where: str | None) -> None:
    """PruneError for what `labels.labelled` will refuse, as far as one example tells."""
    data.check(source, split=where.get("split"))
    if model.weights and data.is_file(source):
        labels.labelled(model, source, samples=1, length=length, label=label, **_given(where))
    elif labels.task(model) == "next token":
        raise PruneError("a model of the next token has perplexity, not accuracy", where="accuracy")


def calibration(model: Model, text: Calibration, *, seed: int) -> None:
    """PruneError for what `labels.calibration` will refuse, as far as it can be known without asking the Hub."""
    fits(model, text.length, where="calibration.length")
    if model.weights and not labels.of_images(model):
        model.tokenizer()
    with of_calibration():
        data.check(text.data, split=text.split)
        if model.weights and data.is_file(text.data):
            labels.calibration(model, **asdict(text), seed=seed)


def fits(model: Model, length: int, *, where: str) -> None:
    """PruneError for windows longer than the positions a model states."""
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if most and length > most:
        raise PruneError(f"length is {length}, and the model has {most} positions", where=where)


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
