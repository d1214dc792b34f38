"""Examples of the task a model was made for: texts and images with a class, tagged or masked words, pairs of texts."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prune.data import IGNORED, Source, batches, rows, windows
from prune.errors import PruneError, unknown
from prune.model.model import Model
from prune.model.walk import Batch

TASKS = {  # how a class's name ends -> the task
    "ForCausalLM": "next token",
    "LMHeadModel": "next token",
    "ForMaskedLM": "masked words",
    "ForSequenceClassification": "text classes",
    "ForTokenClassification": "word tags",
    "ForImageClassification": "image classes",
    "ForConditionalGeneration": "text pairs",
}
COLUMNS = {  # task -> the columns of an input and of its answer where the caller names none
    "text classes": ("text", "label"),
    "word tags": ("tokens", "tags"),
    "image classes": ("image", "label"),
    "text pairs": ("text", "target"),
}
MASKED = 0.15  # the share of words that are masked, as in BERT's training
LENGTH = 128  # the most tokens of an example, where the caller does not say


def task(model: Model) -> str:
    """What a model was made to do, one of the values of `TASKS`, by its class; "" for a class that is none of them."""
    name = model.architecture.__name__
    return next((found for ending, found in TASKS.items() if name.endswith(ending)), "")


def of_images(model: Model) -> bool:
    """Whether a model looks at images."""
    return model.architecture.main_input_name == "pixel_values"


def examples(
    model: Model,
    source: Source,
    *,
    samples: int | None = None,
    length: int | None = None,
    batch_size: int = 8,
    field: str | None = None,
    label: str | None = None,
    split: str | None = None,
    seed: int | None = None,
) -> list[Batch]:
    """Labelled examples as batches for a classifier of texts, of words or of images, or for pairs of texts.

    `source` is a local file or a Hub dataset as `prune.batches` takes it; `field` and `label` name its columns: a text
    and its class (a number, or a name the config knows), a list of words and a list of tags, an image (a path beside
    the file, or what the dataset stores) and its class, a text and its target text. Without a `seed` they come in
    order, with one at random; at most `samples`, each cut to `length` tokens.

    Gives what the model takes with `labels`: int64 (batch,) for classes, (batch, length) for tags and targets, -100
    where nothing is asked. Raises PruneError for columns, classes or images that do not fit.
    """
    kind = task(model)
    if kind not in COLUMNS:
        choices = ", ".join(f"...{ending}" for ending, found in TASKS.items() if found in COLUMNS)
        raise PruneError(f"no labelled examples are known for {model.architecture.__name__}; choices: {choices}")
    columns = (field or COLUMNS[kind][0], label or COLUMNS[kind][1])
    found = _pairs(source, columns, samples=samples, split=split, seed=seed)
    if not found:
        raise PruneError("holds no examples", where=str(source))
    batch = _batcher(model, kind, length, source)
    return [batch(found[start : start + batch_size]) for start in range(0, len(found), batch_size)]


def labelled(
    model: Model,
    source: Source,
    *,
    samples: int | None = None,
    length: int = LENGTH,
    seed: int = 0,
    label: str | None = None,
    **where: Any,
) -> list[Batch]:
    """What a model is asked when its accuracy is measured: labelled examples in order, or text with words masked.

    Raises PruneError for a model of the next token, whose measure is perplexity.
    """
    kind = task(model)
    if kind == "next token":
        raise PruneError("accuracy is of classifiers and masked words; a model of the next token has perplexity")
    if kind == "masked words":
        tokenizer = model.tokenizer()
        text = windows(source, tokenizer, length=length, samples=samples, **where)
        return masked(text, tokenizer, seed=seed)
    return examples(model, source, samples=samples, length=length, label=label, **where)


def calibration(
    model: Model,
    *,
    data: str,
    samples: int,
    length: int,
    seed: int,
    label: str | None = None,
    streaming: bool = False,
    batch_size: int = 8,
    **where: str | None,
) -> list[Batch]:
    """Calibration data as batches of what a model takes: text, with words masked for a model of those, or examples.

    Examples are labelled: for images, for pairs of texts, and wherever a `label` names their column. `where` are
    `field` and `split`. Raises PruneError as `examples` and `prune.batches` do.
    """
    given: dict[str, Any] = {key: value for key, value in where.items() if value is not None}
    numbers: dict[str, Any] = {"samples": samples, "length": length, "batch_size": batch_size, "seed": seed}
    if label is not None or of_images(model) or model.family.encoder:
        return examples(model, data, **numbers, label=label, **given)
    tokenizer = model.tokenizer()
    found = batches(data, tokenizer, **numbers, streaming=streaming, **given)
    if task(model) in COLUMNS:  # the tokens are no answers to what a classifier is asked
        return [{key: value for key, value in batch.items() if key != "labels"} for batch in found]
    if model.architecture.__name__.endswith("ForMultipleChoice"):  # each text is a choice of its own
        return [{key: value.unsqueeze(1) for key, value in batch.items() if key != "labels"} for batch in found]
    return masked(found, tokenizer, seed=seed) if task(model) == "masked words" else found


def masked(text: Sequence[Batch], tokenizer: Any, *, seed: int) -> list[Batch]:
    """Text batches with a share of their words masked, and labels at those places alone. Inputs are not changed."""
    if tokenizer.mask_token_id is None:
        raise PruneError("the tokenizer has no mask token")
    generator = torch.Generator().manual_seed(seed)
    special = torch.tensor(sorted(set(tokenizer.all_special_ids)))
    found = []
    for batch in text:
        ids = batch["input_ids"]
        drawn = torch.rand(ids.shape, generator=generator) < MASKED
        chosen = drawn & batch["attention_mask"].bool() & (batch["labels"] != IGNORED) & ~torch.isin(ids, special)
        replaced = {"input_ids": ids.masked_fill(chosen, tokenizer.mask_token_id)}
        found.append({**batch, **replaced, "labels": ids.masked_fill(~chosen, IGNORED)})
    return found


def made_up(model: Model, *, samples: int, length: int, seed: int) -> Batch:
    """A random batch that the model takes: for what holds of any input."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    if of_images(model):
        size = getattr(config, "image_size", 224)
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        return {"pixel_values": torch.randn(samples, config.num_channels, height, width, generator=generator)}
    length = min(length, _positions(model) or length)
    ids = torch.randint(config.get_text_config().vocab_size, (2, samples, length), generator=generator)
    if model.architecture.__name__.endswith("ForMultipleChoice"):
        return {"input_ids": ids.transpose(0, 1)}  # (samples, choices, length)
    return {"input_ids": ids[0], **({"decoder_input_ids": ids[1]} if model.family.encoder else {})}


def _pairs(
    source: Source, columns: tuple[str, str], *, samples: int | None, split: str | None, seed: int | None
) -> list[tuple[Any, Any]]:
    """(input, answer) of each row that has both."""
    where = str(source)

    def pairs() -> Iterator[tuple[Any, Any]]:
        for row in rows(source, split=split):
            for column in columns:
                if column not in row:
                    raise unknown("field", column, row).at(where)
            if row[columns[0]] is not None and row[columns[1]] is not None:
                yield row[columns[0]], row[columns[1]]

    if seed is None:
        return list(islice(pairs(), samples))
    found = list(pairs())
    random.Random(seed).shuffle(found)
    return found[:samples]


def _batcher(model: Model, kind: str, length: int | None, source: Source) -> Callable[[list[tuple[Any, Any]]], Batch]:
    """Rows to a batch, for the task."""
    if kind == "image classes":
        prepare = _images(model, source)
        return lambda rows: {
            "pixel_values": prepare([image for image, _ in rows]),
            "labels": _classes(model, [label for _, label in rows], source),
        }
    tokenizer = model.tokenizer()
    if tokenizer.pad_token_id is None:
        raise PruneError("the tokenizer has no padding token", where=model.source)
    most = min(length or LENGTH, _positions(model) or length or LENGTH)
    how = {"truncation": True, "max_length": most, "padding": True, "return_tensors": "pt"}
    if kind == "text classes":
        return lambda rows: {
            **tokenizer([str(text) for text, _ in rows], **how),
            "labels": _classes(model, [label for _, label in rows], source),
        }
    if kind == "word tags":
        return lambda rows: _tagged(model, tokenizer, rows, how, source)
    return lambda rows: _paired(model, tokenizer, rows, how)


def _positions(model: Model) -> int | None:
    """How many tokens the model has positions for; None where it has any number."""
    positions = getattr(model.config, "max_position_embeddings", None)
    past_padding = model.family.model_type == "roberta"  # its positions are counted on from the padding token's id
    return positions - model.config.pad_token_id - 1 if positions and past_padding else positions


def _classes(model: Model, labels: Sequence[Any], source: Source) -> Tensor:
    """Class numbers, int64 (batch,), of numbers or names."""
    return torch.tensor([_class(model, label, source) for label in labels])


def _class(model: Model, label: Any, source: Source) -> int:
    if model.config.num_labels == 1:
        raise PruneError("a model with one label gives numbers, not classes, and has no accuracy", where=str(source))
    names, count = dict(model.config.label2id or {}), int(model.config.num_labels or 0)
    number: Any = names.get(label) if isinstance(label, str) else label
    if isinstance(label, str) and number is None and label.isdigit():
        number = int(label)
    if not isinstance(number, int) or not 0 <= number < count:
        raise unknown("class", str(label), [*names, *map(str, range(count))]).at(str(source))
    return int(number)


def _tagged(model: Model, tokenizer: Any, rows: list[tuple[Any, Any]], how: dict[str, Any], source: Source) -> Batch:
    """Words with tags: a word's first token carries its tag, the others none."""
    for words, tags in rows:
        if not isinstance(words, list) or not isinstance(tags, list) or len(words) != len(tags):
            raise PruneError("words and tags must be lists of the same length", where=str(source))
    found = tokenizer([words for words, _ in rows], is_split_into_words=True, **how)
    labels = torch.full_like(found["input_ids"], IGNORED)
    for row, (_, tags) in enumerate(rows):
        before = None
        for place, word in enumerate(found.word_ids(row)):
            if word is not None and word != before:
                labels[row, place] = _class(model, tags[word], source)
            before = word
    return {**found, "labels": labels}


def _paired(model: Model, tokenizer: Any, rows: list[tuple[Any, Any]], how: dict[str, Any]) -> Batch:
    """Texts and what should be answered; the decoder is given the answer moved on by one."""
    found = dict(tokenizer([str(text) for text, _ in rows], **how))
    answers = tokenizer([str(target) for _, target in rows], **how)
    labels = answers["input_ids"].masked_fill(answers["attention_mask"] == 0, IGNORED)
    given = answers["input_ids"].roll(1, dims=1)
    given[:, 0] = model.config.decoder_start_token_id
    seen = answers["attention_mask"]
    return {**found, "decoder_input_ids": given, "decoder_attention_mask": seen, "labels": labels}


def _images(model: Model, source: Source) -> Callable[[list[Any]], Tensor]:
    """Images to pixel values (batch, channels, height, width), by the model's own preprocessor_config.json."""
    processor = model.image_processor()
    folder = Path(str(source)).expanduser().parent if isinstance(source, (str, Path)) else Path()
    return lambda images: processor([_image(image, folder) for image in images], return_tensors="pt")["pixel_values"]


def _image(value: Any, folder: Path) -> Any:
    """A picture in RGB from what a dataset stores: a picture, its bytes, a path beside the file, or its numbers."""
    from PIL import Image, UnidentifiedImageError

    try:
        if isinstance(value, Mapping) and value.get("bytes"):
            value = Image.open(io.BytesIO(value["bytes"]))
        elif isinstance(value, (str, Path)):
            value = Image.open(folder / value)
        elif isinstance(value, list):
            value = Image.fromarray(torch.tensor(value, dtype=torch.uint8).numpy())
        if isinstance(value, Image.Image):
            return value.convert("RGB")
    except (OSError, UnidentifiedImageError, TypeError, ValueError) as error:
        raise PruneError(f"not a readable image: {error}", where=str(folder)) from error
    raise PruneError(f"an image cannot be {type(value).__name__}", where=str(folder))
