"""Attentions and MLPs of whole layers, and the width: what scores them, and that refit takes up what they gave."""

from __future__ import annotations

import pytest
import torch

import prune
from prune.errors import PruneError
from prune.model.groups import groups
from prune.model.halves import left_out
from prune.model.model import Model
from prune.model.open import open as open_model
from prune.model.walk import walk
from prune.remove.choose import choose
from prune.remove.cut import cut
from prune.remove.divergence import divergence
from prune.remove.refit import refit
from tests import zoo
from tests.tiny import padded_batch, tiny_model, token_ids

BATCHES = [padded_batch(0), {"input_ids": token_ids(8, 40)}, {"input_ids": token_ids(8, 40, seed=1)}]
JUDGE = [{"input_ids": token_ids(4, 40, seed=7)}]


@pytest.mark.parametrize("kind", ["attention", "mlp"])
def test_redundancy_is_how_far_leaving_it_out_turns_what_leaves_the_layer(kind: str) -> None:
    module = tiny_model("llama")
    model = open_model(module)
    batch = {"input_ids": token_ids(2, 12)}
    scores = prune.score(model, groups(model, kind), [batch], criterion="redundancy")[kind]
    output = {"attention": "self_attn.o_proj", "mlp": "mlp.down_proj"}[kind]
    seen: list[torch.Tensor] = []
    layer = module.model.layers[1]
    layer.register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad():
        module(**batch)
        inputs: list[torch.Tensor] = []
        hook = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        layer.get_submodule(output).weight.zero_()  # nothing is added to the stream
        module(**batch)
        hook.remove()
    cosine = torch.nn.functional.cosine_similarity(seen[0], seen[1], dim=-1)
    assert scores[1].item() == pytest.approx(1 - cosine.mean().item(), abs=1e-5)


def test_kl_is_what_each_costs_alone_and_greedy_after_that() -> None:
    model = open_model(tiny_model("llama"))
    (group,) = groups(model, "attention")
    scores = prune.score(model, [group], BATCHES, criterion="kl", rounds=2)["attention"]
    alone = [divergence(cut(model, {"attention": [j for j in range(3) if j != i]}), model, BATCHES) for i in range(3)]
    first = min(range(3), key=alone.__getitem__)
    assert scores[first] == -2
    rest = [j for j in range(3) if j != first]
    pairs = {j: divergence(cut(model, {"attention": [i for i in rest if i != j]}), model, BATCHES) for j in rest}
    assert scores[min(pairs, key=pairs.__getitem__)] == -1


def test_protected_layers_keep_theirs() -> None:
    model = open_model(tiny_model("llama"))
    (group,) = groups(model, "mlp")
    plan = choose(model, [group], {"mlp": torch.tensor([0.0, 1.0, 2.0])}, count=1, protect=[0])
    assert plan == {"mlp": [0, 2]}
    with pytest.raises(PruneError, match="leaves nothing"):
        choose(model, [group], {"mlp": torch.zeros(3)}, count=3)
    with pytest.raises(PruneError, match="a plan must keep at least 1"):
        cut(model, {"attention": [], "mlp": [1]})


def test_a_left_out_half_is_there_again_afterwards() -> None:
    model = open_model(tiny_model("llama"))
    visit = next(walk(model, JUDGE))
    whole = visit.forward(0)
    with left_out(visit.module, list(model.family.sublayers.values())):
        assert torch.equal(visit.forward(0), visit.inputs[0])
    assert torch.equal(visit.forward(0), whole)


@pytest.mark.parametrize("family", ["llama", "opt", "gpt_neox"])
def test_refit_makes_up_for_halves_that_went(family: str) -> None:
    model = open_model(zoo.module(family))
    plan = {"attention": [0, 2], "mlp": [0, 1]}
    better = refit(model, plan, BATCHES, target="residual")
    assert better.config.model_type == f"prune_{family}"
    assert divergence(better, model, JUDGE) < divergence(cut(model, plan), model, JUDGE)


@pytest.mark.parametrize(("family", "linears"), [("llama", "all"), ("qwen3", "outputs"), ("gemma2", "outputs")])
def test_refit_makes_up_for_a_narrower_stream(family: str, linears: str) -> None:
    model = open_model(zoo.module(family))
    found = groups(model, ["width", "channels"])
    plan = choose(model, found, prune.score(model, found, criterion="magnitude"), ratio=0.25)
    better = refit(model, plan, BATCHES, target="residual", linears=linears)  # type: ignore[arg-type]
    assert better.tensors.info.keys() >= cut(model, plan).tensors.info.keys()
    assert divergence(better, model, JUDGE) < divergence(cut(model, plan), model, JUDGE)
    with pytest.raises(PruneError, match="cannot take a narrower stream"):
        refit(model, plan, BATCHES, target="pruned")


@pytest.mark.parametrize(("family", "linears"), [("llama", "all"), ("qwen3", "outputs"), ("gemma2", "outputs")])
def test_refit_brings_a_narrower_stream_nearer_to_the_text_it_is_fitted_to(family: str, linears: str) -> None:
    model = open_model(zoo.module(family))
    found = groups(model, ["width", "channels"])
    plan = choose(model, found, prune.score(model, found, BATCHES, criterion="activation"), ratio=0.25)
    better = refit(model, plan, BATCHES, target="residual", linears=linears)  # type: ignore[arg-type]
    expected = [states[..., plan["width"]] for states in _leaving(model)]

    def missed(small: Model) -> float:
        return sum((a - b).square().sum().item() for a, b in zip(_leaving(small), expected, strict=True))

    assert missed(better) < 0.9 * missed(cut(model, plan))


def _leaving(model: Model) -> list[torch.Tensor]:
    """What leaves the last layer, by batch, its text alone."""
    *_, last = walk(model, BATCHES)
    states = [(own, last.mask(b)) for b, own in enumerate(last.outputs)]
    return [own.flatten(0, 1) if mask is None else own[mask] for own, mask in states]


def test_the_width_is_scored_over_all_that_read_the_stream() -> None:
    module = tiny_model("llama")
    model = open_model(module)
    batch = {"input_ids": token_ids(2, 12)}
    expected, seen = torch.zeros(48), {}
    readers = [
        (path, own)
        for path, own in module.named_modules()
        if path.endswith(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"))
    ]
    for path, own in readers:
        own.register_forward_pre_hook(lambda _, args, path=path: seen.update({path: args[0]}))
    with torch.no_grad():
        module(**batch)
    for path, own in readers:
        expected += own.weight.detach().abs().sum(0) * seen[path].square().mean((0, 1)).sqrt()
    found = prune.score(model, groups(model, "width"), [batch], criterion="wanda")["width"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for criterion in ("obs", "magnitude", "activation", "random"):
        assert prune.score(model, groups(model, "width"), [batch], criterion=criterion)["width"].shape == (48,)
