"""Checkpoints as others stored them: older names, bare base models, experts one by one, leftovers of pre-training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from prune.errors import PruneError
from prune.model.groups import groups
from prune.model.open import open as open_model
from prune.model.save import load, save
from prune.remove.choose import choose
from prune.remove.cut import cut
from prune.remove.score import score
from tests import zoo


def names(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


def rewritten(folder: Path, change: dict[str, torch.Tensor]) -> Path:
    save_file(change, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "vit", "deit"])
def test_what_we_write_is_named_as_transformers_names_it(model_type: str, tmp_path: Path) -> None:
    module = zoo.module(model_type)
    module.save_pretrained(tmp_path / "theirs")
    model = open_model(tmp_path / "theirs")
    save(model, tmp_path / "ours")
    assert names(tmp_path / "ours") == names(tmp_path / "theirs")
    theirs, ours = (
        load_file(tmp_path / "theirs" / "model.safetensors"),
        load_file(tmp_path / "ours" / "model.safetensors"),
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    inputs = zoo.batch(model_type)
    assert torch.equal(zoo.logits(load(tmp_path / "ours"), inputs), zoo.logits(module, inputs))


def test_a_cut_mixture_has_its_experts_one_by_one_and_numbered_anew(tmp_path: Path) -> None:
    model = open_model(zoo.module("mixtral"))
    save(cut(model, {group.name: [1, 3] for group in groups(model, "experts")}), tmp_path / "small")
    found = names(tmp_path / "small")
    assert "model.layers.0.block_sparse_moe.experts.1.w2.weight" in found
    assert not any("experts.2." in name or "gate_up" in name for name in found)
    theirs = model.tensors.read("model.layers.2.mlp.experts.down_proj")[3]
    ours = load_file(tmp_path / "small" / "model.safetensors")["model.layers.2.block_sparse_moe.experts.1.w2.weight"]
    assert torch.equal(ours, theirs)


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    zoo.module("mixtral").save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["model.layers.1.block_sparse_moe.experts.2.w3.weight"]
    with pytest.raises(PruneError, match=r"experts\.2\.w3"):
        open_model(rewritten(tmp_path, state))


def test_bare_base_models_and_their_masks_are_read(tmp_path: Path) -> None:
    """GPT-2 as it is published: no prefix, and causal masks among the weights."""
    module = zoo.module("gpt2")
    module.save_pretrained(tmp_path)
    state = {
        name.removeprefix("transformer."): tensor for name, tensor in load_file(tmp_path / "model.safetensors").items()
    }
    state["h.0.attn.bias"] = torch.ones(1, 1, 64, 64)
    model = open_model(rewritten(tmp_path, state))
    assert torch.equal(zoo.logits(load(model), zoo.batch("gpt2")), zoo.logits(module, zoo.batch("gpt2")))


def test_bert_as_it_was_published_is_read(tmp_path: Path) -> None:
    """Norms with gamma and beta, a pooler and a next-sentence head that no masked language model reads."""
    module = zoo.module("bert", "BertForMaskedLM")
    module.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    old = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
        for n, t in state.items()
    }
    old |= {"cls.seq_relationship.weight": torch.ones(2, 48), "bert.pooler.dense.weight": torch.ones(48, 48)}
    model = open_model(rewritten(tmp_path, old))
    assert torch.equal(zoo.logits(load(model), zoo.batch("bert")), zoo.logits(module, zoo.batch("bert")))


TASKS = [
    ("bert", "BertForMaskedLM"),
    ("bert", "BertForTokenClassification"),
    ("roberta", "RobertaForSequenceClassification"),
    ("distilbert", "DistilBertForSequenceClassification"),
    ("distilbert", "DistilBertForMaskedLM"),
    ("electra", "ElectraForTokenClassification"),
    ("electra", "ElectraForMaskedLM"),
    ("deit", "DeiTForImageClassificationWithTeacher"),
]


@pytest.mark.parametrize(("model_type", "architecture"), TASKS)
def test_every_task_of_an_encoder_is_cut_and_reloads(model_type: str, architecture: str, tmp_path: Path) -> None:
    model = open_model(zoo.module(model_type, architecture))
    found = groups(model, ["channels", "layers"])
    small = cut(model, choose(model, found, score(model, found, criterion="random"), ratio=0.5))
    save(small, tmp_path / "small")
    assert json.loads((tmp_path / "small" / "config.json").read_text())["architectures"] == [architecture]
    stock = type(zoo.module(model_type, architecture)).from_pretrained(tmp_path / "small").eval()
    inputs = zoo.batch(model_type)
    assert torch.equal(zoo.logits(stock, inputs), zoo.logits(load(small), inputs))
