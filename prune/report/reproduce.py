"""How the result is loaded and made again, in words that the card and the page share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import yaml

KINDS = {  # how a class's name ends -> the Auto class that loads it, and the Hub's word for its task
    "ForCausalLM": ("AutoModelForCausalLM", "text-generation"),
    "LMHeadModel": ("AutoModelForCausalLM", "text-generation"),
    "ForConditionalGeneration": ("AutoModelForSeq2SeqLM", "text-generation"),  # the Hub has no other word left for it
    "ForMaskedLM": ("AutoModelForMaskedLM", "fill-mask"),
    "ForPreTraining": ("AutoModelForPreTraining", None),
    "ForSequenceClassification": ("AutoModelForSequenceClassification", "text-classification"),
    "ForTokenClassification": ("AutoModelForTokenClassification", "token-classification"),
    "ForQuestionAnswering": ("AutoModelForQuestionAnswering", "question-answering"),
    "ForMultipleChoice": ("AutoModelForMultipleChoice", None),
    "ForImageClassification": ("AutoModelForImageClassification", "image-classification"),
    "ForImageClassificationWithTeacher": ("AutoModelForImageClassification", "image-classification"),
}


def recipe_yaml(manifest: dict[str, Any]) -> str:
    """The recipe in one order, whatever that of the file was: model first, steps last."""
    tidy = json.loads(json.dumps(manifest["recipe"], sort_keys=True))
    order = sorted(tidy, key=lambda name: (name == "steps", name != "model"))
    return str(yaml.safe_dump({name: tidy[name] for name in order}, sort_keys=False, allow_unicode=True))


def kind(architectures: Sequence[str]) -> tuple[str, str | None] | None:
    """The Auto class and the Hub's task of the first class that says what it is for; None where none does."""
    known = (KINDS[ending] for name in architectures for ending in KINDS if name.endswith(ending))
    return next(known, None)


def loading(model_type: str, architectures: Sequence[str] = ()) -> tuple[str, str]:
    """One line that says what loads a checkpoint of this type and class, and the Python that does."""
    if model_type.startswith("prune_"):
        return (
            "Its layers differ in shape, so it has a model type of its own that prune teaches transformers; after "
            "import prune, the Auto classes load it too.",
            'import prune\n\nmodel = prune.load("path/to/this/folder")\n',
        )
    auto, _ = kind(architectures) or (("AutoModel", None) if architectures else KINDS["ForCausalLM"])
    return (
        "A stock checkpoint, which needs no code of ours.",
        f'from transformers import {auto}\n\nmodel = {auto}.from_pretrained("path/to/this/folder")\n',
    )
