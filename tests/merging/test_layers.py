"""Up-scaling: slices equal their sources, expansion changes no logit, lists in configs follow, for every family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import prune
from prune.errors import PruneError
from prune.merging.layers import stack
from prune.model import family as families
from tests import zoo
from tests.tiny import tiny_model, token_ids

NORMED_AFTER = ("bert", "distilbert", "electra", "roberta")


def test_drop_stacks_two_copies_as_solar_does() -> None:
    model = prune.open(tiny_model("llama", num_hidden_layers=6))
    up = prune.upscale(model, drop=2)
    assert up.numbers["layers"] == 2 * (6 - 2)
    sources = [0, 1, 2, 3, 2, 3, 4, 5]
    for new, old in enumerate(sources):
        for name in model.names(old):
            moved = name.replace(f".{old}.", f".{new}.", 1)
            assert torch.equal(up.tensors.read(moved), model.tensors.read(name))
    assert torch.equal(up.tensors.read("lm_head.weight"), model.tensors.read("lm_head.weight"))
    assert len(up.tensors.info) == len(model.tensors.info) + 2 * len(model.names(0))
    by_ranges = prune.upscale(model, layers=[(0, 4), (2, 6)])
    assert by_ranges.tensors.info == up.tensors.info


@pytest.mark.parametrize("name", zoo.FAMILIES)
def test_expansion_changes_no_logit(name: str) -> None:
    module, inputs = zoo.module(name), zoo.batch(name)
    model = prune.open(module)
    if name in NORMED_AFTER:
        with pytest.raises(PruneError, match="norm what they add to"):
            prune.upscale(model, expand=1)
        return
    up = prune.upscale(model, expand=1)
    assert up.numbers["layers"] == 2 * model.numbers["layers"]
    assert torch.equal(zoo.logits(prune.load(up), inputs), zoo.logits(module, inputs))


@pytest.mark.parametrize("name", zoo.FAMILIES)
def test_a_stacked_model_of_every_family_runs_in_stock_transformers_and_its_config_lists_follow(
    name: str, tmp_path: Path
) -> None:
    model = prune.open(zoo.module(name))
    up = prune.upscale(model, drop=1)
    assert up.config.model_type == name
    prune.save(up, tmp_path / "up")
    module, report = type(zoo.module(name)).from_pretrained(tmp_path / "up", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    torch.testing.assert_close(zoo.logits(module, zoo.batch(name)), zoo.logits(prune.load(up), zoo.batch(name)))
    assert torch.isfinite(zoo.logits(module, zoo.batch(name))).all()
    if name in zoo.GENERATES:
        assert module.generate(zoo.batch(name)["input_ids"][:1], max_new_tokens=2).shape[1] > 1
    for key in families.of(name).per_layer_lists:
        before, after = getattr(model.config, key, None), getattr(up.config, key, None)
        if isinstance(before, list) and name != "t5":
            assert after == [*before[:-1], *before[1:]]


def test_it_loads_in_stock_transformers_and_generates(tmp_path: Path) -> None:
    prune.save(prune.upscale(prune.open(zoo.module("gemma2")), drop=1), tmp_path / "up")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "up")
    assert stock.config.layer_types == ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
    assert stock.generate(token_ids(1, 5), max_new_tokens=3, do_sample=False).shape == (1, 8)


def test_post_norm_variants_are_refused_by_their_config() -> None:
    module = zoo.module("opt")
    model = prune.open(module)
    model.config.do_layer_norm_before = False
    with pytest.raises(PruneError, match="norm what they add to"):
        prune.upscale(model, expand=1)


def test_layers_of_unequal_width_are_stacked_too() -> None:
    model = prune.open(tiny_model("llama"))
    small = prune.cut(model, {"layers.1.channels": list(range(20))})
    up = prune.upscale(small, drop=1)
    assert up.config.model_type == "prune_llama"
    assert [up.sizes(layer)["channels"] for layer in range(4)] == [40, 20, 20, 40]
    ids = token_ids(1, 6)
    with torch.no_grad():
        assert torch.isfinite(prune.load(up)(ids).logits).all()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "give one of drop, layers and expand"),
        ({"drop": 1, "expand": 2}, "give one of drop, layers and expand"),
        ({"drop": 3}, "0 to 2 may go"),
        ({"expand": 4}, "there are 3 layers"),
        ({"layers": [(0, 4)]}, "are not among the 3"),
        ({"layers": [(2, 1)]}, "are not among the 3"),
    ],
)
def test_what_cannot_be_stacked_is_refused(options: dict, expected: str) -> None:
    with pytest.raises(PruneError, match=expected):
        prune.upscale(prune.open(tiny_model("llama")), **options)


def test_the_input_is_unchanged_and_any_order_goes() -> None:
    model = prune.open(tiny_model("llama"))
    before = dict(model.tensors.info)
    turned = stack(model, [2, 0])
    assert dict(model.tensors.info) == before and model.numbers["layers"] == 3
    first = turned.tensors.read("model.layers.0.mlp.up_proj.weight")
    assert torch.equal(first, model.tensors.read("model.layers.2.mlp.up_proj.weight"))
