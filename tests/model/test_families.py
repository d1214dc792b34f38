"""Laws that hold for every family and every kind of group it offers, on tiny random models."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig

from prune.errors import PruneError
from prune.model import family as families
from prune.model.groups import HALVES, KINDS, Group, along, groups, kinds
from prune.model.model import Model
from prune.model.nonuniform import model_class
from prune.model.open import open as open_model
from prune.model.register import register
from prune.model.save import load, save
from prune.model.walk import logits
from prune.remove.cut import cut
from prune.remove.prove import prove
from tests import zoo
from tests.laws import chosen, close, in_a_clean_process, killed, leave, mortal

EACH = pytest.mark.parametrize("model_type", zoo.FAMILIES)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Threads only get in the way of models this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# What a family's tiny model needs so that a quarter of a kind is a unit at least.
ROOM = {"query_heads": {"num_key_value_heads": 2}, "layers": {"t5": {"num_layers": 4, "num_decoder_layers": 4}}}


@cache
def roomy(model_type: str, kind: str) -> Model:
    """The family's model, with room for a quarter of the kind to go."""
    changes: dict[str, Any] = ROOM.get(kind, {})
    changes = changes.get(model_type, {}) if kind == "layers" else changes
    return open_model(zoo.module(model_type, **changes)) if changes else opened(model_type)


@cache
def opened(model_type: str) -> Model:
    return open_model(zoo.module(model_type))


def walked(model: Model, model_type: str) -> Tensor:
    return next(iter(logits(model, [zoo.batch(model_type)])))


@EACH
def test_the_walk_computes_what_the_model_computes(model_type: str) -> None:
    expected = zoo.logits(zoo.module(model_type), zoo.batch(model_type))
    assert close(walked(opened(model_type), model_type), expected, 1e-5)


@EACH
def test_masking_units_and_slicing_them_away_is_the_same(model_type: str) -> None:
    for kind in kinds(opened(model_type)):
        model = roomy(model_type, kind)
        units = {group.name: group.units for group in groups(model, kind)}
        plans = [chosen(model, kind, ratio) for ratio in (0.25, 0.5)]
        for plan in plans:
            prove(model, plan, cut(model, plan), zoo.batch(model_type))  # raises when it is not
        for name, all_ in units.items():
            assert len(plans[1][name]) < len(plans[0][name]) < all_, name


@EACH
def test_several_kinds_are_cut_together(model_type: str) -> None:
    model = opened(model_type)
    plan = chosen(model, [kind for kind in kinds(model) if kind not in ("query_heads", *HALVES)], 0.5)
    small = cut(model, plan)
    prove(model, plan, small, zoo.batch(model_type))
    assert close(zoo.logits(load(small), zoo.batch(model_type)), walked(small, model_type))


@EACH
def test_removing_nothing_changes_nothing(model_type: str) -> None:
    model = opened(model_type)
    plan = {group.name: list(range(group.units)) for group in groups(model, kinds(model))}
    same = cut(model, plan)
    assert same.uniform
    assert same.tensors.info == model.tensors.info
    assert all(torch.equal(same.tensors.read(name), model.tensors.read(name)) for name in model.tensors.info)
    assert torch.equal(
        zoo.logits(load(same), zoo.batch(model_type)), zoo.logits(zoo.module(model_type), zoo.batch(model_type))
    )


@EACH
def test_dead_units_cost_nothing(model_type: str) -> None:
    for kind in mortal(opened(model_type)):
        model = roomy(model_type, kind)
        plan = chosen(model, kind, 0.5)
        dead = killed(model, kind, plan)
        small = cut(dead, plan)
        assert small.tensors.parameters < dead.tensors.parameters, kind
        # What a norm adds to its mean square weighs less in fewer positions.
        assert close(walked(small, model_type), walked(dead, model_type), 1e-3 if kind == "width" else 1e-4), kind


@EACH
def test_layers_that_differ_reload_and_generate(model_type: str, tmp_path: Path) -> None:
    model, family = opened(model_type), families.of(model_type)
    plan = {group.name: _fewer(group) for group in groups(model, _narrowed(model)) if group.layer != 1}
    if not family.differing:
        with pytest.raises(PruneError, match="no form whose layers differ"):
            cut(model, plan)
        return
    small = cut(model, plan)
    assert not small.uniform
    save(small, tmp_path / "small")
    inputs = zoo.batch(model_type)
    loaded = load(tmp_path / "small")
    expected = zoo.logits(load(small), inputs)
    assert torch.equal(zoo.logits(loaded, inputs), expected)
    register()
    assert type(AutoConfig.from_pretrained(tmp_path / "small")).__name__.startswith("Prune")
    by_stock_code = model_class(model_type, type(zoo.module(model_type))).from_pretrained(tmp_path / "small")
    assert torch.equal(zoo.logits(by_stock_code.eval(), inputs), expected)
    again = open_model(tmp_path / "small")
    assert [again.sizes(i) for i in range(3)] == [small.sizes(i) for i in range(3)]
    layers = cut(again, {"layers": [0, 2]})  # a cut of a cut
    assert close(walked(layers, model_type), zoo.logits(load(layers), inputs))
    if model_type in zoo.GENERATES:
        assert torch.equal(_generated(loaded, inputs, cache=True), _generated(loaded, inputs, cache=False))


@EACH
def test_layers_without_attention_or_mlp_reload_and_generate(model_type: str, tmp_path: Path) -> None:
    model, inputs = opened(model_type), zoo.batch(model_type)
    if not model.family.differing:
        assert not set(HALVES) & set(kinds(model))
        return
    plan = {"attention": [1, 2], "mlp": [0, 2]}  # the first layer without attention: the cache counts there
    small = cut(model, plan)
    assert not small.uniform
    prove(model, plan, small, inputs)
    save(small, tmp_path / "small")
    loaded = load(tmp_path / "small")
    expected = zoo.logits(load(small), inputs)
    assert close(walked(small, model_type), expected, 1e-5)
    assert torch.equal(zoo.logits(loaded, inputs), expected)
    by_stock_code = model_class(model_type, type(zoo.module(model_type))).from_pretrained(tmp_path / "small")
    assert torch.equal(zoo.logits(by_stock_code.eval(), inputs), expected)
    if model_type in zoo.GENERATES:
        assert torch.equal(_generated(loaded, inputs, cache=True), _generated(loaded, inputs, cache=False))
    again = open_model(tmp_path / "small")
    assert [again.sizes(i) for i in range(3)] == [small.sizes(i) for i in range(3)]
    assert again.tensors.info == small.tensors.info
    twice = cut(again, {"attention": [1], "layers": [0, 2]})  # units are the attentions that are left
    assert close(
        walked(twice, model_type), walked(cut(model, {**plan, "attention": [2], "layers": [0, 2]}), model_type)
    )


def test_a_layer_that_loses_both_halves_is_dropped_and_the_rest_is_stock() -> None:
    model = opened("llama")
    both = cut(model, {"attention": [0, 2], "mlp": [0, 2]})
    assert both.uniform
    assert both.tensors.info == cut(model, {"layers": [0, 2]}).tensors.info
    prove(model, {"attention": [0, 2], "mlp": [0, 2]}, both, zoo.batch("llama"))


def _narrowed(model: Model) -> list[str]:
    return [kind for kind in kinds(model) if kind not in ("layers", "query_heads", "width", *HALVES)]


def _fewer(group: Group) -> list[int]:
    """About half of every partition, in a count that the group allows."""
    half = max(group.minimum, len(group.partitions[0]) // 2)
    each = half // group.multiple * group.multiple
    return [unit for partition in group.partitions for unit in partition[-each:]]


def _generated(model, inputs: dict[str, Tensor], *, cache: bool) -> Tensor:  # type: ignore[no-untyped-def]
    given = {key: value for key, value in inputs.items() if not key.startswith("decoder_")}
    return model.generate(**given, max_new_tokens=5, do_sample=False, use_cache=cache, pad_token_id=0)


CUTS = {"half": 0.5, "quarter": 0.25, "query heads": 0.5}  # what is reloaded of each family


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """Every family cut alike in all layers, loaded by a process without prune: folder name -> what it found.

    Every kind that has a stock form together, by a half and by a quarter, and query heads alone. What is expected is
    said by the cut in memory, before it was saved.
    """
    root = tmp_path_factory.mktemp("stock")
    folders = []
    for model_type, (name, ratio) in itertools.product(zoo.FAMILIES, CUTS.items()):
        kind = "query_heads" if name == "query heads" else ""
        if kind and not _stock_query_heads(model_type):
            continue
        model = roomy(model_type, kind)
        apart = ("query_heads", *HALVES, *model.family.fixed)
        able = [kind] if kind else [k for k in kinds(model) if k not in apart]
        small = cut(model, chosen(model, able, ratio))
        assert small.uniform, model_type
        folder = root / f"{model_type} {name}" / "small"
        leave(small, folder, zoo.batch(model_type))
        folders.append(folder)
    return {folder.parent.name: row for folder, row in in_a_clean_process(folders).items()}


def _stock_query_heads(model_type: str) -> bool:
    """Whether a stock config carries fewer query heads: OLMoE's norm is as wide as the model."""
    return "query_heads" in kinds(opened(model_type)) and model_type != "olmoe"


@EACH
@pytest.mark.parametrize("name", CUTS)
def test_stock_transformers_loads_a_uniform_cut_bit_for_bit(
    model_type: str, name: str, reloaded: dict[str, dict[str, object]]
) -> None:
    found = reloaded.get(f"{model_type} {name}")
    if found is None:
        assert name == "query heads" and not _stock_query_heads(model_type)
        return
    assert found["equal"]
    assert found["clean"]
    assert found.get("generates", True)


@EACH
def test_what_cannot_be_cut_says_why_in_one_line(model_type: str) -> None:
    model = opened(model_type)
    assert set(model.family.refused) <= set(KINDS) - set(kinds(model))
    for kind in set(KINDS) - set(kinds(model)):
        why = families.reason(model.family, kind)
        assert "family names no" not in why, kind  # said of a family that somebody adds and leaves unsaid
        with pytest.raises(PruneError) as caught:
            groups(model, kind)
        assert str(caught.value).startswith(f"{model_type} has no {kind} to remove: {why} (choices: ")
        assert "\n" not in str(caught.value)


def test_reasons_are_those_of_the_case() -> None:
    with pytest.raises(PruneError, match="slope"):
        groups(opened("bloom"), "heads")
    with pytest.raises(PruneError, match="position bias"):
        groups(opened("t5"), "heads")
    with pytest.raises(PruneError, match="remove heads instead"):
        groups(opened("gpt2"), "query_heads")
    with pytest.raises(PruneError, match=r"docs/adding-a-family\.md"):
        families.of("mamba")
    tied = open_model(zoo.module("gpt2", scale_attn_by_inverse_layer_idx=True))
    with pytest.raises(PruneError, match="has no layers to remove: scale_attn_by_inverse_layer_idx ties"):
        groups(tied, "layers")
    assert "names no `stream`" in families.reason(replace(families.of("gpt2"), refused={}), "width")


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text"])
@pytest.mark.parametrize("what", [["heads", "width"], ["width", "heads"]])
def test_a_width_is_chosen_that_goes_with_the_heads_that_stay(model_type: str, what: list[str]) -> None:
    model = opened(model_type)
    for ratio in (0.25, 0.5, 0.6):
        small = cut(model, chosen(model, what, ratio))
        assert small.uniform
        assert small.config.hidden_size < 48 and small.config.num_attention_heads < 8


def test_along_sums_everything_else() -> None:
    (group,) = (g for g in groups(opened("mixtral"), "channels") if g.layer == 0)
    (down,) = group.consumers
    weight = opened("mixtral").tensors.read(down.name)  # (experts, width, inner)
    assert torch.allclose(along(down, weight), weight.sum(1).reshape(-1))
