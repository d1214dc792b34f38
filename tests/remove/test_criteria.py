"""The criteria that look at data or gradients equal their formulae, written out densely here, and their own laws."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from prune.errors import PruneError
from prune.model.groups import groups
from prune.model.open import open as open_model
from prune.remove.choose import choose
from prune.remove.compensate import compensate
from prune.remove.criteria.obs import greedy
from prune.remove.cut import cut
from prune.remove.divergence import divergence
from prune.remove.score import score
from tests.remove.test_score import BATCHES, inputs_of
from tests.tiny import tiny_model, token_ids

DOWN, OUT = "model.layers.{}.mlp.down_proj", "model.layers.{}.self_attn.o_proj"
MORE = [{"input_ids": token_ids(8, 40)}]


def per_unit(columns: torch.Tensor, kind: str) -> torch.Tensor:
    return columns.reshape(-1, 1 if kind == "channels" else 12).sum(1).detach()


def test_flap_is_variance_times_squared_weight() -> None:
    module = tiny_model("llama")
    model = open_model(module)
    found = score(model, groups(model, ["channels", "heads"]), BATCHES, criterion="flap")
    for layer in range(3):
        for path, kind in ((DOWN, "channels"), (OUT, "heads")):
            x = inputs_of(module, path.format(layer))
            weight = module.get_submodule(path.format(layer)).weight
            expected = x.var(0, correction=0) * weight.square().sum(0)
            torch.testing.assert_close(found[f"layers.{layer}.{kind}"], per_unit(expected, kind), rtol=1e-3, atol=1e-4)


def test_flap_gives_the_mean_of_what_went_to_the_bias() -> None:
    module = tiny_model("llama")
    model = open_model(module)
    plan = {"layers.1.channels": list(range(30))}
    small = compensate(model, plan, BATCHES, how="bias")
    expected = module.get_submodule(DOWN.format(1)).weight[:, 30:] @ inputs_of(module, DOWN.format(1)).mean(0)[30:]
    torch.testing.assert_close(small.tensors.read(DOWN.format(1) + ".bias"), expected.detach(), rtol=1e-3, atol=1e-5)
    assert small.tensors.read(DOWN.format(0) + ".bias").abs().sum() == 0


def left_over(gram: torch.Tensor, weight: torch.Tensor, gone: list[int]) -> float:
    """The squared error after the inputs `gone` are removed and the others are solved anew."""
    kept = [i for i in range(len(gram)) if i not in gone]
    best = torch.zeros_like(weight)
    if kept:
        best[:, kept] = torch.linalg.solve(gram[kept][:, kept], gram[kept] @ weight.T).T
    return (((weight - best) @ gram) * (weight - best)).sum().item()


def test_the_greedy_run_leaves_the_error_that_solving_anew_leaves() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 8, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, 8, generator=generator, dtype=torch.float64)
    gram, index = x.T @ x, torch.arange(8).reshape(4, 2)
    curve = greedy(gram, weight, index, rounds=32, damping=1e-12)
    order = curve.argsort()
    for count in range(1, 5):
        gone = index[order[:count]].reshape(-1).tolist()
        assert curve[order[count - 1]].item() == pytest.approx(left_over(gram, weight, gone), rel=1e-6)
    singles = [left_over(gram, weight, own.tolist()) for own in index]
    assert order[0].item() == min(range(4), key=lambda unit: singles[unit])


def test_rounds_change_the_order_little_and_the_joint_error_not_at_all() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 24, generator=generator, dtype=torch.float64)
    weight = torch.randn(5, 24, generator=generator, dtype=torch.float64)
    gram, index = x.T @ x, torch.arange(24).reshape(24, 1)
    curve = greedy(gram, weight, index, rounds=4, damping=1e-12)
    gone = curve.argsort()[:12].tolist()
    assert curve.sort().values[11].item() == pytest.approx(left_over(gram, weight, gone), rel=1e-6)


def test_obs_is_the_greedy_run_on_the_uncut_stream() -> None:
    module = tiny_model("llama")
    model = open_model(module)
    found = score(model, groups(model, ["channels", "heads"]), BATCHES + MORE, criterion="obs", damping=1e-3)
    assert found["layers.1.channels"].shape == (40,)
    assert found["layers.1.heads"].shape == (4,)
    assert all(bool((value >= 0).all()) for value in found.values())


def test_obs_updates_the_weights_that_are_left() -> None:
    model = open_model(tiny_model("llama"))
    found = groups(model, "channels")
    plan = choose(model, found, score(model, found, MORE, criterion="obs"), ratio=0.5)
    made_up = compensate(model, plan, MORE, how="weights")
    assert divergence(made_up, model, MORE) < divergence(cut(model, plan), model, MORE)


def test_activation_is_the_mean_over_sequences_of_the_norm_over_tokens() -> None:
    module = tiny_model("llama")
    model = open_model(module)
    found = score(model, groups(model, ["channels", "heads"]), MORE, criterion="activation")
    seen: list[torch.Tensor] = []
    module.get_submodule(OUT.format(2)).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        module(**MORE[0])
    expected = seen[0].reshape(8, 40, 4, 12).square().sum((1, 3)).sqrt().mean(0)
    torch.testing.assert_close(found["layers.2.heads"], expected)


@pytest.mark.parametrize("form", ["first", "element", "fisher"])
def test_taylor_is_weight_times_gradient(form: str) -> None:
    module = tiny_model("llama")
    model = open_model(module)
    batch = {"input_ids": token_ids(4, 12)}
    found = score(model, groups(model, ["channels", "layers"]), [batch], criterion="taylor", form=form)
    rows = [batch["input_ids"][i : i + 1] for i in range(4)] if form == "fisher" else [batch["input_ids"]]
    expected = torch.zeros(40)
    for ids in rows:
        module.zero_grad()
        module(input_ids=ids, labels=ids).loss.backward()
        mlp = module.model.layers[1].mlp
        parts = [mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight.T]
        grads = [mlp.gate_proj.weight.grad, mlp.up_proj.weight.grad, mlp.down_proj.weight.grad.T]
        products = [(w * g).abs() if form == "element" else w * g for w, g in zip(parts, grads, strict=True)]
        change = sum(product.sum(1) for product in products)
        expected += change.square() if form == "fisher" else change.abs()
    torch.testing.assert_close(found["layers.1.channels"], expected.detach(), rtol=1e-3, atol=1e-6)
    assert found["layers"].shape == (3,)


@pytest.mark.parametrize("name", ["magnitude", "taylor"])
def test_rankings_agree_with_torch_pruning(name: str) -> None:
    tp = pytest.importorskip("torch_pruning")
    module = tiny_model("llama", num_key_value_heads=8)
    ids = token_ids(2, 12)
    model = open_model(module)
    settings = {"norm": "l2"} if name == "magnitude" else {"form": "element"}
    found = score(model, groups(model, "channels"), [{"input_ids": ids}], criterion=name, **settings)
    module(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    graph = tp.DependencyGraph().build_dependency(
        module, example_inputs=ids, forward_fn=lambda m, x: m(x, use_cache=False).logits
    )
    theirs = (
        tp.importance.GroupMagnitudeImportance(p=2, group_reduction="sum", normalizer=None)
        if name == "magnitude"
        else tp.importance.GroupTaylorImportance(group_reduction="sum", normalizer=None, multivariable=False)
    )
    for layer in range(3):
        root = module.model.layers[layer].mlp.gate_proj
        group = graph.get_pruning_group(root, tp.prune_linear_out_channels, idxs=list(range(40)))
        assert torch.equal(theirs(group).argsort(), found[f"layers.{layer}.channels"].argsort())


def test_kl_drops_the_layers_that_matter_least() -> None:
    model = open_model(tiny_model("llama", num_hidden_layers=4))
    batch = [{"input_ids": token_ids(2, 12)}]
    found = score(model, groups(model, "layers"), batch, criterion="kl", rounds=2)["layers"]
    order = found.argsort().tolist()
    one_gone = {i: divergence(cut(model, {"layers": [k for k in range(4) if k != i]}), model, batch) for i in range(4)}
    assert order[0] == min(one_gone, key=lambda layer: one_gone[layer])
    pairs = [pair for pair in combinations(range(4), 2) if order[0] in pair]
    both = {
        pair: divergence(cut(model, {"layers": [k for k in range(4) if k not in pair]}), model, batch) for pair in pairs
    }
    assert set(order[:2]) == set(min(both, key=lambda pair: both[pair]))


def test_gradients_that_do_not_fit_say_what_they_need(monkeypatch) -> None:
    monkeypatch.setattr("prune.remove.criteria.taylor._free", lambda _: 1000.0)
    model = open_model(tiny_model("llama"))
    with pytest.raises(PruneError, match="needs gradients: .* GiB for weights and gradients"):
        score(model, groups(model, "channels"), BATCHES, criterion="taylor")
