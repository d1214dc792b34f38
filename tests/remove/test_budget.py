"""Budgets are met from below and nearly used up; the knapsack is the best there is; sensitivity is what a cut loses."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from prune.errors import PruneError
from prune.model import slots
from prune.model.groups import groups
from prune.model.open import open as open_model
from prune.remove.budget import allocate
from prune.remove.costs import COSTS
from prune.remove.cut import cut
from prune.remove.divergence import divergence
from prune.remove.knapsack import knapsack, program
from prune.remove.score import score
from prune.remove.sensitivity import sensitivity
from prune.remove.sensitivity_plot import write_plot, write_table
from tests.tiny import tiny_model, token_ids

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
