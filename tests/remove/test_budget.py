"""Budgets are met from below and nearly used up; the knapsack is the best there is; sensitivity is what a cut loses."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from prune.errors import PruneError
from prune.model import slots
from prune.model.groups import groups, kinds
from prune.model.open import open as open_model
from prune.remove.budget import allocate, on_grid, problem
from prune.remove.choose import lowest_removed
from prune.remove.costs import COSTS, Timed, timed
from prune.remove.cut import cut
from prune.remove.divergence import divergence
from prune.remove.exchange import exchange
from prune.remove.knapsack import knapsack, program
from prune.remove.mend import Mending, mend
from prune.remove.score import score
from prune.remove.sensitivity import sensitivity
from prune.remove.sensitivity_plot import write_plot, write_table
from prune.remove.within import Search, within
from tests import zoo
from tests.tiny import padded_batch, tiny_model, token_ids

BATCHES = [{"input_ids": token_ids(4, 24)}]


@pytest.fixture(scope="module")
def scored():
    model = open_model(tiny_model("llama", intermediate_size=160, num_hidden_layers=2))
    found = groups(model, ["channels", "heads"])
    return model, found, score(model, found, BATCHES, criterion="obs")


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("budget", [{"params": 0.6}, {"flops": 0.6}, {"bytes": 0.7}, {"params": 0.7, "flops": 0.6}])
def test_a_budget_is_met_from_below(scored, budget: dict[str, float], uniform: bool) -> None:
    model, found, scores = scored
    small = cut(model, allocate(model, found, scores, budget=budget, uniform=uniform))
    shares = {name: COSTS[name](small) / COSTS[name](model) for name in budget}
    assert all(shares[name] <= budget[name] for name in budget)
    assert any(shares[name] > budget[name] * 0.99 for name in budget)
    assert small.uniform or not uniform


def test_room_is_kept_for_what_refit_adds(scored) -> None:
    model, found, scores = scored
    small = slots.opened(cut(model, allocate(model, found, scores, budget={"params": 0.6}, finished=slots.opened)))
    assert 0.59 < small.tensors.parameters / model.tensors.parameters <= 0.6


def test_the_shapes_of_the_grid_are_ranked_by_the_judge(scored) -> None:
    model, found, scores = scored
    judged: dict[float, dict] = {}

    def judge(plan):
        value = divergence(cut(model, plan), model, BATCHES)
        judged[value] = plan
        return value

    plan = allocate(model, found, scores, budget={"params": 0.7}, judge=judge)
    assert len(judged) > 1
    assert plan == judged[min(judged)]


def test_the_knapsack_and_the_program_find_the_best() -> None:
    rng = np.random.default_rng(0)
    lost = [np.sort(np.append(0, rng.random(4))) for _ in range(4)]
    saved = [np.array([0.0, 10, 20, 30, 40]) for _ in range(4)]
    best = min(
        sum(own[p] for own, p in zip(lost, pick, strict=True)) for pick in product(range(5), repeat=4) if sum(pick) >= 8
    )
    for picks in (knapsack(lost, saved, 80.0), program(lost, [saved, saved], [80.0, 60.0])):
        assert picks is not None
        assert sum(picks) >= 8
        assert sum(own[p] for own, p in zip(lost, picks, strict=True)) == pytest.approx(best)


def test_a_budget_that_cannot_be_met_says_the_smallest(scored) -> None:
    model, found, scores = scored
    for uniform in (True, False):
        with pytest.raises(PruneError, match=r"the smallest is params 0\.\d+"):
            allocate(model, found, scores, budget={"params": 0.01}, uniform=uniform)
    with pytest.raises(PruneError, match="unknown budget 'parms'; did you mean 'params'"):
        allocate(model, found, scores, budget={"parms": 0.5})


def test_sensitivity_is_the_divergence_of_each_cut_alone(tmp_path) -> None:
    model = open_model(tiny_model("llama"))
    points = sensitivity(model, BATCHES, what=["channels", "layers"], ratios=[0.5])
    assert [(p.kind, p.layer) for p in points] == [("channels", i) for i in range(3)] + [
        ("layers", i) for i in range(3)
    ]
    assert points[0].removed == 20
    alone = divergence(cut(model, {"layers": [0, 2]}), model, BATCHES)
    assert points[4].divergence == pytest.approx(alone)
    write_table(points, tmp_path / "sensitivity.csv")
    assert len((tmp_path / "sensitivity.csv").read_text().splitlines()) == 7
    pytest.importorskip("matplotlib")
    write_plot(points, tmp_path / "sensitivity.svg")
    assert "<svg" in (tmp_path / "sensitivity.svg").read_text()


def test_masked_sensitivity_is_what_cutting_each_loses_for_every_kind() -> None:
    model = open_model(tiny_model("llama"))
    batches = [padded_batch(), *BATCHES]
    points = sensitivity(model, batches, ratios=[0.5])
    assert {point.kind for point in points} == {"heads", "query_heads", "channels", "layers", "attention", "mlp"}
    found = groups(model, ["channels", "heads"])
    scores = score(model, found, batches, criterion="wanda")
    for point in points:
        if point.kind in ("channels", "heads"):
            group = next(g for g in found if g.name == point.group)
            plan = {group.name: lowest_removed(group, scores[group.name], 0.5)}
        elif point.kind == "query_heads":
            continue
        else:
            plan = {point.kind: [layer for layer in range(3) if layer != point.layer]}
        assert point.divergence == pytest.approx(divergence(cut(model, plan), model, batches), rel=1e-3), point


def test_experts_are_measured_too_by_magnitude() -> None:
    model = open_model(zoo.module("mixtral"))
    batches = [{"input_ids": token_ids(4, 24)}]
    points = sensitivity(model, batches, ratios=[0.5])
    assert {"heads", "channels", "experts"} <= {point.kind for point in points}
    found = groups(model, "experts")
    scores = score(model, found, criterion="magnitude")
    for group, point in zip(found, [point for point in points if point.kind == "experts"], strict=True):
        kept = lowest_removed(group, scores[group.name], 0.5)
        assert point.removed == group.units - len(kept) > 0
        assert point.divergence == pytest.approx(divergence(cut(model, {group.name: kept}), model, batches), rel=1e-3)


def test_more_variants_than_fit_take_more_walks(monkeypatch: pytest.MonkeyPatch) -> None:
    from prune.remove import sensitivity as module

    model = open_model(tiny_model("llama"))
    once = sensitivity(model, BATCHES, ratios=[0.5])
    monkeypatch.setattr(module, "HELD", 1)
    assert sensitivity(model, BATCHES, ratios=[0.5]) == once


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"what": ["width"]}, "the width belongs to no layer; choices: heads"),
        ({"ratios": [1.5]}, "ratios are fractions removed"),
        ({"criterion": "activation"}, "makes a walk of its own; choices: wanda"),
    ],
)
def test_what_sensitivity_cannot_measure_is_said(options: dict, says: str) -> None:
    with pytest.raises(PruneError, match=says):
        sensitivity(open_model(tiny_model("llama")), BATCHES, **options)


def test_a_latency_budget_is_met_by_a_table_that_is_kept(scored, tmp_path) -> None:
    model, found, scores = scored
    channels = [[0.0, 1.0], [80.0, 2.0], [160.0, 4.0]]
    table = Timed("cpu", "None", 16, {"channels": channels, "heads": [[1.0, 3.0], [4.0, 4.0]]}, 0.5)
    (tmp_path / "latency.json").write_text(json.dumps(asdict(table)))  # a run that was stopped has timed this
    record: dict = {}
    search = Search(None, tmp_path, record)
    for uniform in (True, False):
        plan = within(model, found, scores, BATCHES, {"latency": 0.6}, search, exact=True, uniform=uniform)
        assert 0.59 < table.seconds(cut(model, plan)) / table.seconds(model) <= 0.6
    assert record["latency"] == asdict(table)
    with pytest.raises(PruneError, match=r"the smallest is latency 0\.\d+"):
        within(model, found, scores, BATCHES, {"latency": 0.001}, search, exact=True, uniform=True)


def test_layers_are_timed_once_and_more_units_never_take_less(scored, tmp_path) -> None:
    model, found, _ = scored
    table = timed(model, found, kept=tmp_path / "latency.json")
    for points in table.layer.values():
        seconds = [own for _, own in points]
        assert seconds == sorted(seconds)
        assert seconds[0] > 0
    assert timed(model, found, kept=tmp_path / "latency.json") == table


def test_seconds_are_interpolated_between_what_was_timed() -> None:
    model = open_model(tiny_model("llama"))
    table = Timed(
        "cpu", "torch.float32", 16, {"channels": [[0.0, 1.0], [40.0, 3.0]], "heads": [[0.0, 2.0], [4.0, 3.0]]}, 1.0
    )
    assert table.seconds(model) == pytest.approx(3 * 3.0 + 1)
    small = cut(model, {f"layers.{i}.channels": list(range(20)) for i in range(3)})
    assert table.seconds(small) == pytest.approx(3 * 2.0 + 1)
    both = cut(small, {"layers.0.heads": [0, 1]})
    assert table.seconds(both) == pytest.approx(3 * 2.0 + 1 - 0.5)


def test_exchange_ends_no_worse_and_within_the_budget(scored) -> None:
    model, found, scores = scored
    asked = problem(model, found, scores, {"params": 0.6})
    start = on_grid(asked, None)
    assert start is not None
    wanted = {"layers.0.channels": 1.0, "layers.1.channels": 0.1, "layers.0.heads": 0.1, "layers.1.heads": 0.1}

    def judge(sizes: dict[str, int]) -> float:
        return sum(weight * (1 - sizes[name] / 160) ** 2 for name, weight in wanted.items())

    found_sizes = exchange(asked, start, judge)
    assert asked.fits(found_sizes)
    assert judge(found_sizes) < judge(asked.filled(start))
    assert found_sizes["layers.0.channels"] > start["layers.0.channels"]


def test_layers_are_not_shared_out_by_a_budget(scored) -> None:
    model, _, _ = scored
    for kind, uniform in (("attention", True), ("width", False)):
        spanning = groups(model, kind)
        with pytest.raises(PruneError, match="in a step of its own"):
            within(model, spanning, {}, BATCHES, {"params": 0.5}, Search(), exact=False, uniform=uniform)


def test_a_uniform_budget_may_narrow_the_stream(scored) -> None:
    model, _, _ = scored
    found = groups(model, ["channels", "width"])
    scores = score(model, found, BATCHES, criterion="wanda")
    plan = within(model, found, scores, BATCHES, {"params": 0.5}, Search(), exact=False, uniform=True)
    small = cut(model, plan)
    assert small.uniform
    assert 0.49 < small.tensors.parameters / model.tensors.parameters <= 0.5


FAMILIES = ["llama", "qwen2", "gpt2", "bloom", "gpt_neox", "mixtral", "qwen2_moe", "gemma2", "phi3"]


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("finished", [None, slots.opened])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_smallest_that_is_said_can_be_had(family: str, finished: Any, uniform: bool) -> None:
    model = open_model(zoo.module(family))
    found = groups(model, [kind for kind in kinds(model) if kind in ("heads", "channels")])
    scores = {group.name: torch.arange(group.units, dtype=torch.float) for group in found}
    for name in ("params", "flops"):
        with pytest.raises(PruneError, match=r"the smallest is ") as caught:
            allocate(model, found, scores, budget={name: 0.001}, uniform=uniform, finished=finished)
        smallest = float(str(caught.value).rsplit(" ", 1)[1])
        plan = allocate(model, found, scores, budget={name: smallest}, uniform=uniform, finished=finished)
        whole, small = COSTS[name](model), cut(model, plan)
        small = small if finished is None else finished(small)
        assert smallest - 0.02 < COSTS[name](small) / whole <= smallest


def test_all_units_are_always_a_shape() -> None:
    """BLOOM's config states no channels: as many from each layer is then a checkpoint of a type of its own."""
    model = open_model(zoo.module("bloom"))
    found = groups(model, "channels")
    scores = {group.name: torch.arange(group.units, dtype=torch.float) for group in found}
    for share in (0.9, 1.0):
        small = cut(model, allocate(model, found, scores, budget={"params": share}))
        assert share * 0.98 < small.tensors.parameters / model.tensors.parameters <= share


@pytest.mark.parametrize("uniform", [True, False])
def test_a_budget_leaves_what_is_protected_and_aligns_the_rest(scored, uniform: bool) -> None:
    model, found, scores = scored
    options = {"protect": [0], "multiple_of": 16, "uniform": uniform}
    plan = allocate(model, found, scores, budget={"params": 0.8}, **options)
    assert set(plan) == {"layers.1.channels", "layers.1.heads"}
    assert len(plan["layers.1.channels"]) % 16 == 0
    assert 0.7 < cut(model, plan).tensors.parameters / model.tensors.parameters <= 0.8
    kept = allocate(model, found, scores, budget={"params": 0.8}, uniform=uniform, protect=["heads"], multiple_of=32)
    assert {name.rsplit(".", 1)[1]: len(own) % 32 for name, own in kept.items()} == {"channels": 0}
    with pytest.raises(PruneError, match="every group is protected"):
        allocate(model, found, scores, budget={"params": 0.8}, uniform=uniform, protect=["heads", "channels"])


def test_a_search_leaves_what_is_protected_and_aligns_the_rest(scored) -> None:
    model, found, scores = scored
    options = {"protect": [1], "multiple_of": 8, "exact": True, "uniform": False}
    plan = within(model, found, scores, BATCHES, {"params": 0.75}, Search(), **options)
    assert set(plan) == {"layers.0.channels", "layers.0.heads"}
    assert len(plan["layers.0.channels"]) % 8 == 0


def test_only_the_width_is_added_up_beside_error_curves(scored, monkeypatch: pytest.MonkeyPatch) -> None:
    from prune.remove import within as module

    model, _, _ = scored
    found = groups(model, ["channels", "width"])
    scores = score(model, found, BATCHES, criterion="obs")
    given: dict[str, torch.Tensor] = {}

    def noted(model, groups, curves, *args, **options):
        given.update(curves)
        return problem(model, groups, curves, *args, **options)

    monkeypatch.setattr(module, "problem", noted)
    within(model, found, scores, None, {"params": 0.5}, Search(), exact=True, uniform=True)
    assert all(torch.equal(given[name], own) for name, own in scores.items() if name != "width")
    assert given["width"].max() == pytest.approx(scores["width"].sum().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("mending", "opens"),
    [
        (Mending("flap"), True),
        (Mending("obs"), False),
        (Mending("flap", {"intercept": False}), False),
        (Mending("wanda", {}), True),
        (Mending("flap", None, fold=True), False),
    ],
)
def test_biases_are_opened_by_refit_and_by_flap(mending: Mending, opens: bool) -> None:
    model = open_model(tiny_model("llama"))
    assert mending.opens is opens
    plan = {f"layers.{layer}.channels": list(range(20)) for layer in range(3)} | {"layers": [0, 1]}
    plan = {"layers": [0, 1]} if mending.fold else {name: own for name, own in plan.items() if name != "layers"}
    small = mend(model, plan, BATCHES, mending, record={})
    assert (small.tensors.parameters > cut(model, plan).tensors.parameters) is opens
