"""Checkpoints whose layers differ, in the hands of others once prune is imported: the Auto classes and pipelines."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, pipeline

import prune

PLAN = {"layers.0.channels": list(range(400)), "layers.2.heads": [0, 2, 3]}
PROMPT = "def main"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model with two layers cut, on disk."""
    return prune.save(prune.cut(prune.open("bundled"), PLAN), tmp_path_factory.mktemp("clients") / "small")


def expected(folder: Path) -> str:
    tokenizer, module = AutoTokenizer.from_pretrained(folder), prune.load(folder)
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    found = module.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    text: str = tokenizer.decode(found[0], skip_special_tokens=True)
    return text


def test_the_auto_classes(folder: Path) -> None:
    assert AutoConfig.from_pretrained(folder).model_type == "prune_llama"
    module = AutoModelForCausalLM.from_pretrained(folder)
    assert type(module).__name__ == "PruneLlamaForCausalLM"
    ours = prune.load(folder)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), ours.parameters(), strict=True))


def test_a_pipeline(folder: Path) -> None:
    speaks = pipeline("text-generation", str(folder))
    assert speaks(PROMPT, max_new_tokens=8, do_sample=False)[0]["generated_text"] == expected(folder)
