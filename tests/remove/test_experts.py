"""Laws of experts: what the criteria measure, what masks do, and merging."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, MixtralForCausalLM

from prune.errors import PruneError
from prune.model.groups import groups
from prune.model.model import Model
from prune.model.open import open as open_model
from prune.model.tensors import Tensors
from prune.model.walk import logits, walk
from prune.recipe import apply, check
from prune.remove.absorb import absorb
from prune.remove.choose import choose
from prune.remove.cut import cut
from prune.remove.gather import gather
from prune.remove.score import score
from tests import zoo

MIXTURES = ("mixtral", "olmoe", "qwen2_moe", "qwen3_moe")


@pytest.fixture
def model() -> Model:
    return open_model(zoo.module("mixtral"))


def replaced(model: Model, **changed: Tensor) -> Model:
    tensors = Tensors(model.tensors.info, lambda name: changed[name] if name in changed else model.tensors.read(name))
    return replace(model, tensors=tensors)


def equal_experts(model: Model) -> Model:
    """All experts of a layer as the first, routers as they were."""
    names = [name for name in model.tensors.info if ".experts." in name]
    return replaced(
        model, **{n: model.tensors.read(n)[:1].expand(model.tensors.info[n].shape).contiguous() for n in names}
    )


@pytest.mark.parametrize("model_type", MIXTURES)
def test_reap_and_frequency_are_their_formulae(model_type: str) -> None:
    model, batch = open_model(zoo.module(model_type)), zoo.batch(model_type)
    found = groups(model, "experts")
    reap = score(model, found, [batch], criterion="reap")
    frequency = score(model, found, [batch], criterion="frequency")
    text = batch["attention_mask"].bool().reshape(-1)
    for visit in walk(model, [batch]):
        group = next((g for g in found if g.layer == visit.index), None)
        if group is None:
            continue
        block = visit.module.mlp
        seen: list[Tensor] = []
        hook = block.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].reshape(-1, 48)[text]))
        visit.run()
        hook.remove()
        (hidden,) = seen
        with torch.no_grad():
            _, gates, chosen = block.gate(hidden)
            for expert in range(4):
                tokens, place = (chosen == expert).nonzero(as_tuple=True)
                gate, up = (hidden[tokens] @ block.experts.gate_up_proj[expert].T).chunk(2, -1)
                output = (nn.functional.silu(gate) * up) @ block.experts.down_proj[expert].T
                expected = (gates[tokens, place] * output.norm(dim=-1)).mean() if len(tokens) else torch.tensor(0.0)
                assert torch.allclose(reap[group.name][expert], expected, rtol=1e-4)
                assert torch.allclose(frequency[group.name][expert], torch.tensor(len(tokens) / chosen.numel()))


def test_statistics_inside_experts_are_sums_over_each_experts_tokens(model: Model) -> None:
    batch = zoo.batch("mixtral")
    found = groups(model, "channels")
    for visit in walk(model, [batch]):
        group = found[visit.index]
        sums = gather(visit, model.layer(visit.index), group.consumers, ("square", "gram"))[group.consumers[0].name]
        assert sums["square"].shape == (4 * 32,)
        assert torch.allclose(sums["square"], sums["gram"].diagonal(dim1=1, dim2=2).reshape(-1), atol=1e-5)
    scores = score(model, found, [batch], criterion="wanda")
    plan = choose(model, found, scores, ratio=0.25)
    assert all(len(set(kept) & set(range(e * 32, e * 32 + 32))) == 24 for kept in plan.values() for e in range(4))


def test_equal_experts_lose_nothing_when_two_go(model: Model) -> None:
    model, batch = equal_experts(model), zoo.batch("mixtral")
    found = groups(model, "experts")
    for criterion in ("reap", "frequency", "magnitude"):
        plan = choose(model, found, score(model, found, [batch], criterion=criterion), ratio=0.5)
        small = cut(model, plan)
        assert small.uniform
        assert small.config.num_local_experts == 2
        before, after = (next(iter(logits(m, [batch]))) for m in (model, small))
        assert torch.allclose(before, after, atol=1e-4 * before.abs().max().item())


def test_absorbing_equal_experts_changes_nothing_and_keeps_shapes(model: Model) -> None:
    same, batch = equal_experts(model), zoo.batch("mixtral")
    plan = {group.name: [0, 3] for group in groups(model, "experts")}
    usage = score(model, groups(model, "experts"), [batch], criterion="frequency", soft=True)
    merged = absorb(same, plan, usage)
    name = "model.layers.0.mlp.experts.down_proj"
    assert torch.allclose(merged.tensors.read(name), same.tensors.read(name), atol=1e-6)
    mixed = absorb(model, plan, usage).tensors.read(name)
    before = model.tensors.read(name)
    assert not torch.allclose(mixed[[0, 3]], before[[0, 3]])
    assert torch.allclose(mixed[[1, 2]], before[[1, 2]], atol=1e-6)  # dropped ones are left as they were


TEXT = {"data": "python-docs", "samples": 2, "length": 16}
HALF = {"what": "experts", "ratio": 0.5, "criterion": "magnitude"}


def mixture(folder: Path, *, equal: bool = False) -> Path:
    """A mixture on disk that text can be given to, the experts of a layer all different or all equal."""
    tokenizer = open_model("bundled").tokenizer()
    module = copy.deepcopy(zoo.module("mixtral", vocab_size=len(tokenizer)))
    for stack in (stack for layer in module.model.layers for stack in layer.mlp.experts.parameters() if equal):
        stack.data = stack.data[:1].expand_as(stack).contiguous()
    module.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def applied(folder: Path, output: Path, **remove: Any) -> Model:
    apply({"model": str(folder), "output": str(output), "calibration": TEXT, "steps": [{"remove": {**HALF, **remove}}]})
    return open_model(str(output))


def answers(model: Model) -> Tensor:
    return next(iter(logits(model, [{"input_ids": zoo.token_ids(2, 8)}])))


def test_a_recipe_absorbs_what_it_drops_into_what_a_stock_class_loads(tmp_path: Path) -> None:
    folder = mixture(tmp_path / "whole")
    plain, merged = applied(folder, tmp_path / "plain"), applied(folder, tmp_path / "merged", absorb=True)
    names = plain.tensors.info
    differing = {name for name in names if not torch.equal(plain.tensors.read(name), merged.tensors.read(name))}
    assert differing == {name for name in names if ".experts." in name}
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert type(stock) is MixtralForCausalLM and stock.config.num_local_experts == 2
    with torch.no_grad():
        assert torch.allclose(stock(zoo.token_ids(2, 8)).logits, answers(merged), atol=1e-4)


def test_equal_experts_lose_nothing_where_a_recipe_absorbs_half(tmp_path: Path) -> None:
    folder = mixture(tmp_path / "whole", equal=True)
    before = answers(open_model(str(folder)))
    after = answers(applied(folder, tmp_path / "merged", absorb=True))
    assert torch.allclose(before, after, atol=1e-4 * before.abs().max().item())


def test_absorbing_is_of_experts_and_looks_at_data(tmp_path: Path) -> None:
    recipe = {"model": str(mixture(tmp_path)), "output": "out"}
    with pytest.raises(PruneError, match="absorb: only experts are absorbed, and `what` has none"):
        check({**recipe, "calibration": TEXT, "steps": [{"remove": {**HALF, "what": "channels", "absorb": True}}]})
    with pytest.raises(PruneError, match="absorb: absorb weighs experts by their use; give the recipe a calibration"):
        check({**recipe, "steps": [{"remove": {**HALF, "absorb": True}}]})


def test_fewer_experts_than_a_token_goes_to_are_refused(model: Model) -> None:
    with pytest.raises(PruneError, match="at least 2"):
        cut(model, {"layers.0.experts": [1]})
    plan = choose(model, groups(model, "experts"), {g.name: torch.rand(4) for g in groups(model, "experts")}, ratio=0.7)
    assert {len(kept) for kept in plan.values()} == {2}


def test_channels_of_experts_stay_in_multiples_that_kernels_take(model: Model) -> None:
    with pytest.raises(PruneError, match="multiple of 8"):
        cut(model, {"layers.0.channels": [e * 32 + c for e in range(4) for c in range(5)]})
