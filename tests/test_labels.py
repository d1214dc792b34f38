"""Labelled examples become what a model takes, and what they ask is what is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaForSequenceClassification,
    T5ForConditionalGeneration,
    ViTForImageClassification,
    ViTImageProcessor,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import prune
from prune import labels
from prune.errors import PruneError
from prune.model import family as families
from tests import zoo

WORDS = [
    "[PAD]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "[UNK]",
    *["a", "good", "bad", "film", "it", "was", "not", "##ish", "very", "long"],
]
TEXTS = [("a good film", 1), ("a bad film", 0), ("it was not good", 0), ("very very long", 2)] * 4
NAMES = {"negative": 0, "positive": 1, "neutral": 2}


def tokenizer() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordPiece({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 1), ("[SEP]", 2)])
    special = {name: f"[{name[:-6].upper()}]" for name in ("pad_token", "cls_token", "sep_token", "mask_token")}
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", **special)


def folder(path: Path, kind: type[PreTrainedModel]) -> Path:
    """A tiny model of a class, with its tokenizer or image processor."""
    model_type = kind.config_class.model_type
    module = kind(
        type(zoo.module(model_type).config)(
            **{**zoo.CHANGES[model_type], "label2id": NAMES, "id2label": {n: k for k, n in NAMES.items()}}
        )
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    module.save_pretrained(path)
    if model_type == "vit":
        size = {"height": module.config.image_size, "width": module.config.image_size}
        ViTImageProcessor(size=size).save_pretrained(path)
    else:
        tokenizer().save_pretrained(path)
    return path


def rows(path: Path, content: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return str(path)


@pytest.fixture
def reviews(tmp_path: Path) -> str:
    return rows(tmp_path / "reviews.jsonl", [{"text": text, "label": label} for text, label in TEXTS])


def test_classes_by_number_or_name_give_what_the_model_is_asked(tmp_path: Path, reviews: str) -> None:
    model = prune.open(folder(tmp_path / "bert", BertForSequenceClassification))
    numbered = labels.examples(model, reviews)
    named = rows(tmp_path / "named.jsonl", [{"say": text, "is": list(NAMES)[label]} for text, label in TEXTS])
    for one, other in zip(numbered, labels.examples(model, named, field="say", label="is"), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert torch.cat([batch["labels"] for batch in numbered]).tolist() == [label for _, label in TEXTS]
    shuffled = torch.cat([batch["labels"] for batch in labels.examples(model, reviews, seed=3)]).tolist()
    assert sorted(shuffled) == sorted(label for _, label in TEXTS) and shuffled != [label for _, label in TEXTS]


def test_accuracy_and_loss_are_transformers_own(tmp_path: Path, reviews: str) -> None:
    source = folder(tmp_path / "bert", BertForSequenceClassification)
    found = prune.evaluate(prune.open(source), accuracy=reviews)["accuracy"]
    module = BertForSequenceClassification.from_pretrained(source).eval()
    inputs = tokenizer()([text for text, _ in TEXTS], padding=True, return_tensors="pt")
    labels = torch.tensor([label for _, label in TEXTS])
    with torch.no_grad():
        said = module(**inputs, labels=labels)
    assert found["model"]["loss"] == pytest.approx(said.loss.item(), abs=1e-5)
    assert found["model"]["accuracy"] == (said.logits.argmax(-1) == labels).float().mean()
    assert found["labels"] == len(TEXTS) and found["task"] == "text classes"


def test_a_tag_stands_on_the_first_token_of_its_word(tmp_path: Path) -> None:
    model = prune.open(folder(tmp_path / "bert", BertForTokenClassification))
    source = rows(tmp_path / "tags.jsonl", [{"tokens": ["a", "goodish", "film"], "tags": [0, "positive", 2]}])
    (batch,) = labels.examples(model, source)
    # [CLS] a good ##ish film [SEP]
    assert batch["labels"].tolist() == [[-100, 0, 1, -100, 2, -100]]
    assert prune.evaluate(model, accuracy=source)["accuracy"]["labels"] == 3
    uneven = rows(tmp_path / "uneven.jsonl", [{"tokens": ["a"], "tags": [0, 1]}])
    with pytest.raises(PruneError, match="lists of the same length"):
        labels.examples(model, uneven)


def test_masked_words_are_asked_and_nothing_else(tmp_path: Path) -> None:
    model = prune.open(folder(tmp_path / "bert", BertForMaskedLM))
    text = tmp_path / "text.txt"
    text.write_text(" ".join(["a good film it was not bad"] * 60))
    plain = prune.windows(str(text), model.tokenizer(), length=16)
    given = labels.labelled(model, str(text), length=16, seed=0)
    for before, after in zip(plain, given, strict=True):
        masked = after["input_ids"] == WORDS.index("[MASK]")
        assert torch.equal(masked, after["labels"] != -100)
        assert torch.equal(after["labels"][masked], before["input_ids"][masked])
        assert torch.equal(after["input_ids"][~masked], before["input_ids"][~masked])
        assert not before["input_ids"].eq(WORDS.index("[MASK]")).any()
    again = labels.labelled(model, str(text), length=16, seed=0)
    assert all(torch.equal(a["labels"], b["labels"]) for a, b in zip(given, again, strict=True))
    found = prune.evaluate(model, accuracy=str(text), length=16)["accuracy"]
    assert 0.05 < found["labels"] / 420 < 0.3


@pytest.mark.parametrize("stored", ["paths", "numbers"])
def test_images_are_prepared_by_the_models_own_settings(tmp_path: Path, stored: str) -> None:
    source = folder(tmp_path / "vit", ViTForImageClassification)
    pictures = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    content = []
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
        content.append({"image": f"{number}.png" if stored == "paths" else picture.tolist(), "label": number})
    model = prune.open(source)
    (batch,) = labels.examples(model, rows(tmp_path / "images.jsonl", content))
    expected = ViTImageProcessor.from_pretrained(source)(list(pictures), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(batch["pixel_values"], expected)
    assert batch["labels"].tolist() == [0, 1, 2]
    with pytest.raises(PruneError, match="not a readable image"):
        labels.examples(model, rows(tmp_path / "none.jsonl", [{"image": "none.png", "label": 0}]))


def test_pairs_of_texts_have_the_loss_that_transformers_gives_them(tmp_path: Path) -> None:
    source = folder(tmp_path / "t5", T5ForConditionalGeneration)
    file = rows(
        tmp_path / "pairs.jsonl", [{"text": "a good film", "target": "very long"}, {"text": "a", "target": "it"}]
    )
    model = prune.open(source)
    (batch,) = labels.examples(model, file)
    module = T5ForConditionalGeneration.from_pretrained(source).eval()
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "labels")}
    with torch.no_grad():
        expected = module(**inputs).loss.item()
    assert prune.evaluate(model, accuracy=file)["accuracy"]["model"]["loss"] == pytest.approx(expected, abs=1e-4)


def test_long_texts_are_cut_to_the_positions_there_are_and_no_further(tmp_path: Path) -> None:
    long = rows(tmp_path / "long.jsonl", [{"text": "good " * 300, "target": "bad " * 300, "label": 1}])
    roberta = prune.open(folder(tmp_path / "roberta", RobertaForSequenceClassification))
    (batch,) = labels.examples(roberta, long, length=300)
    assert batch["input_ids"].shape[1] == roberta.config.max_position_embeddings - roberta.config.pad_token_id - 1
    assert prune.evaluate(roberta, accuracy=long, length=300)["accuracy"]["labels"] == 1
    t5 = prune.open(folder(tmp_path / "t5", T5ForConditionalGeneration))  # its positions have no end
    (batch,) = labels.examples(t5, long, length=200)
    assert batch["input_ids"].shape == batch["labels"].shape == (1, 200)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([{"text": "a"}], "unknown field 'label'; choices: text"),
        ([{"text": "a", "label": 3}], "unknown class '3'"),
        ([{"text": "a", "label": "postive"}], "did you mean 'positive'"),
        ([{"text": None, "label": 0}], "holds no examples"),
    ],
)
def test_examples_that_do_not_fit_are_named(tmp_path: Path, content: list[dict[str, Any]], expected: str) -> None:
    model = prune.open(folder(tmp_path / "bert", BertForSequenceClassification))
    with pytest.raises(PruneError, match=expected):
        labels.examples(model, rows(tmp_path / "bad.jsonl", content))


@pytest.mark.parametrize("criterion", ["wanda", "taylor"])
def test_a_classifier_is_pruned_and_measured_by_recipe(tmp_path: Path, reviews: str, criterion: str) -> None:
    source = folder(tmp_path / "bert", BertForSequenceClassification)
    steps = [
        {"remove": {"what": ["channels", "heads"], "ratio": 0.25, "criterion": criterion}},
        {"evaluate": {"accuracy": reviews}},
    ]
    calibration = {"data": reviews, "label": "label", "samples": 12, "length": 8}
    recipe = {"model": str(source), "output": str(tmp_path / "out"), "calibration": calibration, "steps": steps}
    record = prune.apply(recipe).steps[1]["record"]["accuracy"]
    assert set(record) >= {"before", "after", "task", "data"}
    assert record["before"]["loss"] != record["after"]["loss"]


def test_a_vision_model_is_pruned_by_recipe(tmp_path: Path) -> None:
    source = folder(tmp_path / "vit", ViTForImageClassification)
    pictures = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    file = rows(tmp_path / "images.jsonl", [{"image": p.tolist(), "label": n % 3} for n, p in enumerate(pictures)])
    steps = [
        {"remove": {"what": "channels", "ratio": 0.25, "criterion": "taylor"}},
        {"remove": {"what": "heads", "ratio": 0.25, "criterion": "magnitude"}},
        {"evaluate": {"accuracy": file}},
    ]
    calibration = {"data": file, "samples": 6, "length": 8}
    recipe = {"model": str(source), "output": str(tmp_path / "out"), "calibration": calibration, "steps": steps}
    assert prune.apply(recipe).steps[2]["record"]["accuracy"]["labels"] == 6
    del recipe["calibration"], steps[0]
    steps[0]["remove"]["ratio"] = 0.5
    assert prune.apply({**recipe, "output": str(tmp_path / "without")}).state == "done"


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra"])
def test_every_class_of_an_encoder_is_pruned_and_proved(family: str, tmp_path: Path) -> None:
    """Each class that a family names is opened, scored on text, cut, proved and saved, with and without data."""
    text = tmp_path / "text.txt"
    text.write_text(" ".join(["a good film it was not bad"] * 30))
    for name in families.of(family).classes:
        config = {**zoo.CHANGES[family], "num_labels": 2} if "Question" in name else zoo.CHANGES[family]
        source = tmp_path / name
        getattr(transformers, name)(CONFIG_MAPPING[family](**config)).save_pretrained(source)
        tokenizer().save_pretrained(source)
        remove = {"remove": {"what": ["heads", "channels"], "ratio": 0.5, "criterion": "wanda"}}
        calibration = {"data": str(text), "samples": 2, "length": 12}
        recipe = {"model": str(source), "output": str(tmp_path / f"small-{name}"), "steps": [remove]}
        assert prune.apply({**recipe, "calibration": calibration}).steps[0]["record"]["proof"], name
        without = {"remove": {"what": "channels", "ratio": 0.5, "criterion": "magnitude"}}
        assert prune.apply({**recipe, "output": str(tmp_path / f"plain-{name}"), "steps": [without]}).state == "done"


def test_measures_that_do_not_fit_a_model_are_refused_before(tmp_path: Path, reviews: str) -> None:
    source = folder(tmp_path / "bert", BertForSequenceClassification)
    with pytest.raises(PruneError, match="perplexity is of models of the next token"):
        prune.check({"model": str(source), "steps": [{"evaluate": {"perplexity": reviews, "length": 16}}]})
    with pytest.raises(PruneError, match="a model of the next token has perplexity"):
        prune.check({"model": "bundled", "steps": [{"evaluate": {"accuracy": reviews}}]})
    taylor = {"remove": {"what": "channels", "ratio": 0.5, "criterion": "taylor"}}
    calibration = {"data": reviews, "samples": 4, "length": 4}
    with pytest.raises(PruneError, match="needs the labels of BertForSequenceClassification's examples"):
        prune.apply(
            {"model": str(source), "output": str(tmp_path / "out"), "calibration": calibration, "steps": [taylor]}
        )
