"""Laws of experts: what the criteria measure, what masks do, and merging."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from prune.errors import PruneError
from prune.model.groups import groups
from prune.model.model import Model
from prune.model.open import open as open_model
from prune.model.tensors import Tensors
from prune.model.walk import logits, walk
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


def test_fewer_experts_than_a_token_goes_to_are_refused(model: Model) -> None:
    with pytest.raises(PruneError, match="at least 2"):
        cut(model, {"layers.0.experts": [1]})
    plan = choose(model, groups(model, "experts"), {g.name: torch.rand(4) for g in groups(model, "experts")}, ratio=0.7)
    assert {len(kept) for kept in plan.values()} == {2}


def test_channels_of_experts_stay_in_multiples_that_kernels_take(model: Model) -> None:
    with pytest.raises(PruneError, match="multiple of 8"):
        cut(model, {"layers.0.channels": [e * 32 + c for e in range(4) for c in range(5)]})
