"""The criteria that look at data or gradients equal their formulae, written out densely here, and their own laws."""

from __future__ import annotations

from copy import deepcopy
from itertools import combinations

import pytest
import torch

from prune.errors import PruneError
from prune.model.groups import groups
from prune.model.open import open as open_model
from prune.remove.choose import choose
from prune.remove.compensate import compensate, updated
from prune.remove.criteria.obs import greedy
from prune.remove.cut import cut
from prune.remove.divergence import divergence
from prune.remove.score import criteria, criterion, needs_data, score
from tests.remove.test_score import BATCHES, inputs_of
from tests.tiny import tiny_model, token_ids
from tests.zoo import module as zoo_module

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


def test_heads_and_query_heads_that_go_together_are_made_up_for_once() -> None:
    module = tiny_model("llama")
    plan = {"layers.1.heads": [0, 1, 3], "layers.1.query_heads": [0, 2, 4, 6]}
    small = compensate(open_model(module), plan, BATCHES, how="bias")
    out = module.get_submodule(OUT.format(1))
    kept = torch.tensor([0, 2, 6])  # query heads, two from each key-value head, of 6 inputs each
    gone = torch.ones(48, dtype=torch.bool).index_fill(0, (kept[:, None] * 6 + torch.arange(6)).flatten(), False)
    expected = out.weight[:, gone] @ inputs_of(module, OUT.format(1)).mean(0)[gone]
    torch.testing.assert_close(small.tensors.read(OUT.format(1) + ".bias"), expected.detach(), rtol=1e-3, atol=1e-5)


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
    found = score(model, groups(model, ["channels", "heads"]), BATCHES, criterion="obs", rounds=40, damping=1e-2)
    for path, kind in ((DOWN, "channels"), (OUT, "heads")):
        x = inputs_of(module, path.format(1)).double()
        weight = module.get_submodule(path.format(1)).weight.detach().double()
        gram = x.T @ x / len(x)
        gram += 1e-2 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        units = torch.arange(len(gram)).reshape(-1, 1 if kind == "channels" else 12).tolist()
        left: dict[int, float] = {}
        while len(left) < len(units):
            gone = [position for unit in left for position in units[unit]]
            lost = {n: left_over(gram, weight, gone + own) for n, own in enumerate(units) if n not in left}
            least = min(lost, key=lost.__getitem__)
            left[least] = lost[least]
        expected = torch.tensor([left[n] for n in range(len(units))])
        torch.testing.assert_close(found[f"layers.1.{kind}"], expected, rtol=1e-3, atol=1e-4)


def test_inputs_that_are_all_zero_have_a_cost_and_move_nothing() -> None:
    nothing, weight = torch.zeros(4, 4), torch.ones(2, 4)
    costs = greedy(nothing, weight, torch.arange(4)[:, None], rounds=32, damping=1e-3)
    assert bool(costs.isfinite().all())
    assert torch.equal(updated(weight, nothing, torch.arange(4) < 2)[0], torch.ones(2, 2))


def test_the_update_is_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(30, 8, generator=generator), torch.randn(3, 8, generator=generator)
    gram, removed = x.T @ x, torch.tensor([1, 0, 0, 1, 0, 0, 0, 1]).bool()
    h = gram.double() + 1e-3 * gram.diagonal().mean() * torch.eye(8)
    inverse = torch.linalg.inv(h[~removed][:, ~removed])
    expected = weight[:, ~removed] + weight[:, removed].double() @ h[removed][:, ~removed] @ inverse
    torch.testing.assert_close(updated(weight, gram, removed)[0], expected.float())
    surgeon = torch.linalg.inv(h)  # the same by the inverse of the whole, as in the paper
    change = weight[:, removed].double() @ torch.linalg.inv(surgeon[removed][:, removed]) @ surgeon[removed]
    torch.testing.assert_close(updated(weight, gram, removed)[0], (weight - change)[:, ~removed].float())


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


@pytest.mark.parametrize("family", ["llama", "phi3", "mixtral"])  # each linear by itself, fused, and with a router
def test_activation_of_the_width_counts_each_norm_once(family: str) -> None:
    module = zoo_module(family)
    model = open_model(module)
    seen: list[torch.Tensor] = []
    for layer in module.model.layers:
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad():
        module(**MORE[0])
    expected = sum(out.square().sum(1).sqrt().mean(0) for out in seen)
    found = score(model, groups(model, "width"), MORE, criterion="activation")["width"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in criteria() if needs_data(name)])
def test_activations_that_are_not_finite_name_the_layer(name: str) -> None:
    family = "mixtral" if criterion(name).KINDS == ("experts",) else "llama"
    module = deepcopy(zoo_module(family)) if family == "mixtral" else tiny_model(family)
    with torch.no_grad():
        for path, own in module.model.layers[1].named_parameters():
            if path.startswith("mlp.") and "down_proj" not in path and "gate.weight" not in path:
                own.fill_(1e38 if "up_proj" in path else 1e3)
    model = open_model(module)
    kind = next(kind for kind in ("channels", "experts", "layers") if kind in criterion(name).KINDS)
    with pytest.raises(PruneError, match=r"model\.layers\.1\b"):
        score(model, groups(model, kind), BATCHES, criterion=name)


@pytest.mark.parametrize("name", ["wanda", "flap", "obs"])
def test_activations_whose_squares_are_not_finite_name_the_layer(name: str) -> None:
    module = tiny_model("llama")
    with torch.no_grad():
        module.get_submodule("model.layers.1.mlp.up_proj").weight.mul_(1e22)
        module.get_submodule("model.layers.1.mlp.down_proj").weight.mul_(1e-22)
    model = open_model(module)
    with pytest.raises(PruneError, match=r"what enters model\.layers\.1\.mlp\.down_proj is not finite, or its square"):
        score(model, groups(model, "channels"), BATCHES, criterion=name)


def test_gradients_that_are_not_finite_name_the_layer() -> None:
    module = tiny_model("llama")
    with torch.no_grad():
        module.get_submodule("model.layers.1.mlp.up_proj").weight.zero_()
        module.get_submodule("model.layers.1.mlp.down_proj").weight.fill_(3e38)
        module.lm_head.weight.mul_(1e6)
    model = open_model(module)
    with pytest.raises(PruneError, match=r"the gradient of model\.layers\.1\.\S+ is not finite"):
        score(model, groups(model, "channels"), BATCHES, criterion="taylor")


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
    limits = {"memory.max": 2000, "memory.current": 1000}  # of a control group, whatever the system has
    monkeypatch.setattr("prune.model.memory._number", lambda path: limits[path.name])
    model = open_model(tiny_model("llama"))
    with pytest.raises(PruneError, match="needs gradients: .* GiB for weights and gradients"):
        score(model, groups(model, "channels"), BATCHES, criterion="taylor")
