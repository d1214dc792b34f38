"""Refit solves what it says it solves, changes nothing where nothing was cut, and brings a cut model nearer."""

from __future__ import annotations

import pytest
import torch

import prune
from prune.errors import PruneError
from prune.model.groups import groups
from prune.model.open import open as open_model
from prune.model.overlay import Changes
from prune.model.save import load, save
from prune.model.walk import walk
from prune.remove import gauss_newton, looked, solve
from prune.remove.choose import choose
from prune.remove.cut import cut
from prune.remove.divergence import divergence
from prune.remove.looked import look
from prune.remove.mend import unfoldable
from prune.remove.refit import refit
from prune.remove.stages import stages
from tests import zoo
from tests.tiny import padded_batch, tiny_model, token_ids

BATCHES = [padded_batch(0), {"input_ids": token_ids(8, 40)}, {"input_ids": token_ids(8, 40, seed=1)}]
JUDGE = [{"input_ids": token_ids(4, 40, seed=7)}]


def plan_for(model: prune.Model, ratio: float = 0.25) -> dict[str, list[int]]:
    found = groups(model, ["channels", "heads"])
    return choose(model, found, prune.score(model, found, BATCHES), ratio=ratio)


def example(tokens: int = 60, inputs: int = 5, outputs: int = 3) -> tuple[torch.Tensor, torch.Tensor, solve.Sums]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, inputs, generator=generator) + 0.5
    t = torch.randn(tokens, outputs, generator=generator) - 1
    found = solve.sums(inputs, outputs)
    for part in (slice(0, 20), slice(20, tokens)):
        solve.add(found, x[part], t[part])
    return x, t, found


def test_ridge_is_the_formula() -> None:
    x, t, found = example()
    weight = torch.ones(3, 5)
    gram = (x.T @ x).double()
    pull = 0.1 * gram.diagonal().mean()
    expected = torch.linalg.solve(gram + pull * torch.eye(5), (x.T @ t).double() + pull * weight.T.double()).T
    torch.testing.assert_close(solve.ridge(found, weight, None, damping=0.1).weight, expected.float())


def test_an_intercept_is_least_squares_with_a_column_of_ones() -> None:
    x, t, found = example()
    expected = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1)], dim=1), t).solution.T
    solution = solve.ridge(found, torch.zeros(3, 5), torch.zeros(3), damping=0.0, intercept=True)
    torch.testing.assert_close(solution.weight, expected[:, :-1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(solution.bias, expected[:, -1], atol=1e-5, rtol=1e-4)


def test_the_error_from_sums_is_the_mean_squared_error() -> None:
    x, t, found = example()
    weight, bias = torch.randn(3, 5), torch.randn(3)
    expected = (t - x @ weight.T - bias).square().sum(1).mean().item()
    assert solve.error(found, weight, bias) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("inputs", [64, 257, 300])
def test_the_gram_is_the_whole_of_it(inputs: int) -> None:
    x, _, found = example(inputs=inputs)
    torch.testing.assert_close(found.gram, (x.T @ x).double(), atol=1e-4, rtol=1e-5)


def test_states_that_are_kept_are_those_that_another_run_would_give(monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(tiny_model("llama"))
    plan = plan_for(model)
    kept = refit(model, plan, BATCHES, target="residual")
    monkeypatch.setattr(looked, "KEPT", 0)
    again = refit(model, plan, BATCHES, target="residual")
    for name in kept.tensors.info:
        torch.testing.assert_close(kept.tensors.read(name), again.tensors.read(name), atol=1e-4, rtol=1e-3)


def test_a_singular_gram_is_damped_until_it_can_be_solved() -> None:
    found = solve.sums(4, 2)
    solve.add(found, torch.ones(3, 4), torch.ones(3, 2))
    solution = solve.ridge(found, torch.zeros(2, 4), None, damping=0.0)
    assert solution.damping > 0
    torch.testing.assert_close(solution.weight, torch.full((2, 4), 0.25), atol=1e-3, rtol=1e-3)


def test_inputs_that_are_all_zero_leave_the_old_weights() -> None:
    old = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    for intercept in (False, True):
        found = solve.sums(4, 2)
        solve.add(found, torch.zeros(7, 4), torch.ones(7, 2))
        wide = solve.Sums(*(own.float() for own in vars(found).values()))  # as sums of many inputs are kept
        for sums in (found, wide):
            solution = solve.ridge(sums, old, torch.zeros(2), damping=1e-4, intercept=intercept)
            torch.testing.assert_close(solution.weight, old)


def test_inputs_that_never_change_are_solved_beside_an_intercept() -> None:
    found = solve.sums(4, 2)
    solve.add(found, torch.full((7, 4), 1000.1), torch.ones(7, 2))  # the centred Gram is rounding and nothing else
    solution = solve.ridge(found, torch.ones(2, 4), torch.zeros(2), damping=1e-4, intercept=True)
    assert solve.error(found, solution.weight, solution.bias) < 1e-4


def test_a_gram_that_cannot_be_solved_is_refused() -> None:
    found = solve.sums(2, 1)
    found.gram.copy_(torch.tensor([[1.0, 1e30], [1e30, 1.0]]))
    with pytest.raises(PruneError, match="the Gram of a linear's inputs cannot be solved"):
        solve.ridge(found, torch.zeros(1, 2), None, damping=1e-2)
    found.gram.fill_(torch.nan)
    with pytest.raises(PruneError, match="a linear's inputs are not finite"):
        solve.ridge(found, torch.zeros(1, 2), None, damping=1e-2)


def test_damping_is_picked_on_what_was_held_out() -> None:
    _, _, few = example(tokens=21, inputs=18)
    x, t, _ = example(tokens=2000, inputs=18)
    held = solve.Held()
    held.add(x, t)
    assert solve.best_damping(few, held, torch.zeros(3, 18), None, (1e-6, 10.0)) == 10.0


@pytest.mark.parametrize("bias", [None, torch.tensor([0.5, -1.0, 2.0])])
@pytest.mark.parametrize("inputs", [5, 50], ids=["as sums", "as rows"])
def test_what_was_held_out_judges_the_same_however_it_is_held_and_joins_the_rest(
    inputs: int, bias: torch.Tensor | None
) -> None:
    x, t, found = example(inputs=inputs)
    held, weight = solve.Held(), torch.randn(3, inputs)
    for part in (slice(0, 10), slice(10, 40)):
        held.add(x[part], t[part])
    expected = (t[:40] - torch.nn.functional.linear(x[:40], weight, bias)).square().sum().item() / 40
    assert held.error(weight, bias) == pytest.approx(expected, rel=1e-5)
    rest = solve.sums(inputs, 3)
    solve.add(rest, x[40:], t[40:])
    held.join(rest)
    for name in solve.Sums.__dataclass_fields__:
        torch.testing.assert_close(getattr(rest, name), getattr(found, name), rtol=1e-5, atol=1e-5)


def test_nothing_cut_changes_nothing() -> None:
    model = open_model(tiny_model("llama"))
    whole = {group.name: list(range(group.units)) for group in groups(model, ["channels", "heads"])}
    same = refit(model, whole, BATCHES, target="dense", intercept=False)
    assert all(torch.equal(same.tensors.read(name), model.tensors.read(name)) for name in model.tensors.info)


def test_the_first_output_linear_is_ridge_on_what_the_cut_stream_feeds_it() -> None:
    module = tiny_model("llama")
    model = open_model(module)
    plan = {"layers.0.heads": [0, 1, 3]}
    found = refit(model, plan, BATCHES, target="dense", damping=1e-2, intercept=False)
    name = "model.layers.0.self_attn.o_proj"
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    module.get_submodule(name).register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    inputs, outputs = [], []
    for batch in BATCHES:
        with torch.no_grad():
            module(**batch)
        text = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
        inputs.append(seen[-1][0][text])
        outputs.append(seen[-1][1][text])
    kept = torch.tensor([i for i in range(48) if i // 12 != 2])  # attention before its output is untouched by the cut
    x, y = torch.cat(inputs)[:, kept].double(), torch.cat(outputs).double()
    pull = 1e-2 * (x.T @ x).diagonal().mean()
    old = module.get_submodule(name).weight.detach()[:, kept].double()
    expected = torch.linalg.solve(x.T @ x + pull * torch.eye(36), x.T @ y + pull * old.T).T
    torch.testing.assert_close(found.tensors.read(f"{name}.weight"), expected.float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "target"),
    [("llama", "dense"), ("llama", "pruned"), ("opt", "residual"), ("gpt2", "pruned"), ("gemma2", "residual")],
)
def test_a_refit_model_is_nearer_to_the_uncut_one(family: str, target: str) -> None:
    model = open_model(zoo.module(family) if family not in ("llama", "qwen2") else tiny_model(family))
    found = groups(model, "channels")
    plan = choose(model, found, prune.score(model, found, BATCHES), ratio=0.5)
    better = refit(model, plan, BATCHES, target=target)  # type: ignore[arg-type]
    assert divergence(better, model, JUDGE) < divergence(cut(model, plan), model, JUDGE)


def test_on_a_trained_model_text_not_calibrated_on_is_predicted_better() -> None:
    model = prune.open("bundled")
    text = prune.batches("python-docs", model.tokenizer(), samples=24, length=128)
    held = prune.windows("python-docs", model.tokenizer(), length=128, samples=4)
    found = groups(model, ["channels", "heads"])
    plan = choose(model, found, prune.score(model, found, text), ratio=0.25)
    record: dict = {}
    better = refit(model, plan, text, record=record)
    assert divergence(better, model, held) < 0.85 * divergence(cut(model, plan), model, held)
    assert set(record["divergence"]) == {"dense", "residual"}
    assert record["target"] == min(record["divergence"], key=record["divergence"].get)


def test_what_lies_on_disk_is_what_is_held_in_memory(tmp_path) -> None:
    model = open_model(tiny_model("llama"))
    plan = plan_for(model)
    held = refit(model, plan, BATCHES, target="dense")
    lying = refit(model, plan, BATCHES, target="dense", changes=Changes(tmp_path))
    assert list(tmp_path.iterdir())
    assert all(torch.equal(held.tensors.read(name), lying.tensors.read(name)) for name in held.tensors.info)


def test_dropped_layers_are_made_up_for_by_the_one_before() -> None:
    model = open_model(tiny_model("llama", num_hidden_layers=4))
    plan = {"layers": [0, 1, 3]}
    better = refit(model, plan, BATCHES, target="dense")
    assert divergence(better, model, JUDGE) < divergence(cut(model, plan), model, JUDGE)


@pytest.mark.parametrize(("heads", "saved_as"), [(0.5, "llama"), (0.25, "seed_oss")])
def test_biases_are_solved_where_a_stock_config_has_slots(heads: float, saved_as: str, tmp_path) -> None:
    model = open_model(tiny_model("llama", hidden_size=64, head_dim=8))
    found = groups(model, "heads")
    plan = choose(model, found, prune.score(model, found, BATCHES), ratio=heads)
    better = refit(model, plan, BATCHES, target="dense")
    save(better, tmp_path / "small")
    again = open_model(tmp_path / "small")
    assert again.config.model_type == better.config.model_type == saved_as
    assert again.tensors.read("model.layers.1.mlp.down_proj.bias").abs().sum() > 0
    with torch.no_grad():
        expected = load(better)(JUDGE[0]["input_ids"]).logits
        assert torch.equal(load(again)(JUDGE[0]["input_ids"]).logits, expected)


def test_bfloat16_weights_are_solved_in_higher_precision() -> None:
    model = open_model(tiny_model("llama", dtype=torch.bfloat16))
    plan = plan_for(model)
    better = refit(model, plan, BATCHES, target="dense")
    assert {info.dtype for info in better.tensors.info.values()} == {torch.bfloat16}
    assert divergence(better, model, JUDGE) < divergence(cut(model, plan), model, JUDGE)


def test_too_few_tokens_are_damped_and_noted() -> None:
    model = open_model(tiny_model("llama"))
    record: dict = {}
    refit(model, plan_for(model), [{"input_ids": token_ids(1, 8)}], target="dense", record=record)
    assert "model.layers.0.mlp.down_proj" in record["few_tokens"]


def test_a_reference_with_other_layers_is_refused() -> None:
    model, other = open_model(tiny_model("llama")), open_model(tiny_model("llama", num_hidden_layers=2))
    with pytest.raises(PruneError, match="the reference has 2 layers, the model 3"):
        refit(model, plan_for(model), BATCHES, reference=other)


def test_folding_solves_the_one_linear_before_what_was_dropped() -> None:
    model = open_model(tiny_model("llama", num_hidden_layers=4))
    plan = {"layers": [0, 1, 3]}
    folded = refit(model, plan, BATCHES, fold_only=True, intercept=False)
    plain = cut(model, plan)
    differ = [n for n in plain.tensors.info if not torch.equal(folded.tensors.read(n), plain.tensors.read(n))]
    assert differ == ["model.layers.1.mlp.down_proj.weight"]
    assert divergence(folded, model, JUDGE) < divergence(plain, model, JUDGE)
    with pytest.raises(PruneError, match="nothing to fold"):
        refit(model, {"layers": [1, 2, 3]}, BATCHES, fold_only=True)


def test_the_folded_linear_is_ridge_on_what_leaves_the_dropped_layers() -> None:
    module = tiny_model("llama", num_hidden_layers=4)
    folded = refit(open_model(module), {"layers": [0, 1, 3]}, BATCHES, fold_only=True, damping=1e-2, intercept=False)
    down = module.get_submodule("model.layers.1.mlp.down_proj")
    seen: dict[str, torch.Tensor] = {}
    down.register_forward_hook(lambda _, args, out: seen.update(x=args[0], y=out))
    for i in (1, 2):
        layer = module.get_submodule(f"model.layers.{i}")
        layer.register_forward_hook(lambda _, __, out, i=i: seen.update({f"h{i}": out}))
    inputs, targets = [], []
    for batch in BATCHES:
        with torch.no_grad():
            module(**batch)
        text = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
        inputs.append(seen["x"][text])
        targets.append((seen["h2"] - (seen["h1"] - seen["y"]))[text])  # h_b - h_attn
    x, t, old = torch.cat(inputs).double(), torch.cat(targets).double(), down.weight.detach().double()
    pull = 1e-2 * (x.T @ x).diagonal().mean() * torch.eye(x.shape[1], dtype=x.dtype)
    expected = torch.linalg.solve(x.T @ x + pull, x.T @ t + pull @ old.T).T
    found = folded.tensors.read("model.layers.1.mlp.down_proj.weight")
    torch.testing.assert_close(found, expected.float(), rtol=1e-3, atol=1e-4)


def test_states_that_are_not_finite_name_the_layer() -> None:
    module = tiny_model("llama")
    with torch.no_grad():
        module.get_submodule("model.layers.1.mlp.down_proj").weight.fill_(1e38)
    model = open_model(module)
    says = r"leave model\.layers\.1 are not finite; compute in float32 or bfloat16"
    with pytest.raises(PruneError, match=says):
        prune.score(model, groups(model, "channels"), BATCHES)
    with pytest.raises(PruneError, match=says):
        refit(model, {"layers.0.channels": list(range(20))}, BATCHES, target="dense")


@pytest.mark.parametrize("fold_only", [False, True])
def test_states_that_are_not_finite_behind_dropped_layers_name_the_layer(fold_only: bool) -> None:
    module = tiny_model("llama", num_hidden_layers=4)
    with torch.no_grad():
        module.get_submodule("model.layers.3.mlp.up_proj").weight.fill_(1e38)
        module.get_submodule("model.layers.3.mlp.gate_proj").weight.fill_(1e3)
    with pytest.raises(PruneError, match=r"model\.layers\.3\b"):
        refit(open_model(module), {"layers": [0, 1, 3]}, BATCHES, target="dense", fold_only=fold_only)


def test_rounds_of_gauss_newton_come_nearer_still(fixtures_folder) -> None:
    model = prune.open(str(fixtures_folder / "models" / "stories260K-llama"))
    source = str(fixtures_folder / "text" / "tinystories.jsonl")
    text = prune.batches(source, model.tokenizer(), samples=32, length=128)
    held = prune.batches(source, model.tokenizer(), samples=8, length=128, seed=5)
    found = groups(model, "channels")
    plan = choose(model, found, prune.score(model, found, text), ratio=0.5)
    closed = refit(model, plan, text, target="residual")
    nearer = refit(model, plan, text, target="residual", rounds=2)
    assert divergence(nearer, model, held) < 0.9 * divergence(closed, model, held)


def test_gauss_newton_solves_a_linear_problem_in_one_round() -> None:
    x, t, _ = example(tokens=200)
    fitted = gauss_newton.fit(lambda w, x: x @ w["w"].T, {"w": torch.zeros(3, 5) + 0.1}, [x], [t], rounds=1, pull=0.0)
    torch.testing.assert_close(fitted["w"], torch.linalg.lstsq(x, t).solution.T, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_a_family_says_whether_its_output_is_added_as_it_is(family: str) -> None:
    model = open_model(zoo.module(family))
    for visit in walk(model, [zoo.batch(family)]):
        found: dict[str, bool] = {}
        paths = [stage.linears[0].path for stage in stages(model, visit.index, {}, None, inner=False)]
        look(visit, paths, found)
        assert found[paths[-1]] is not bool(unfoldable(model, visit.index))
