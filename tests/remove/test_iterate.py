"""Two cuts in a row are one cut by the composed plan; rounds end at the ratio that was asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from prune.model.groups import groups
from prune.model.model import Model
from prune.model.open import open as open_model
from prune.remove.choose import choose
from prune.remove.cut import Plan, cut
from prune.remove.decide import Surroundings, Wanted, decide
from prune.remove.iterate import compose, iterate
from prune.remove.mend import Mending
from prune.remove.score import score
from tests.tiny import tiny_model, token_ids

BATCHES = [{"input_ids": token_ids(4, 24)}]


def test_two_cuts_are_one_cut_by_the_composed_plan() -> None:
    model = open_model(tiny_model("llama", num_hidden_layers=4))
    first = {"layers": [0, 2, 3], "layers.2.channels": list(range(4, 36))}
    then = {"layers": [1, 2], "layers.1.channels": [0, 1, 5, 9], "layers.2.heads": [1, 3]}
    once, twice = cut(model, compose(first, then)), cut(cut(model, first), then)
    assert once.tensors.info == twice.tensors.info
    assert all(torch.equal(once.tensors.read(name), twice.tensors.read(name)) for name in once.tensors.info)


def test_rounds_end_at_the_ratio_asked() -> None:
    model = open_model(tiny_model("llama"))
    seen = []

    def plan_for(current, ratio, of):
        found = groups(current, ["channels", "heads"])
        seen.append(found[0].units)
        return choose(current, found, score(current, found, BATCHES), ratio=ratio, of=of)

    units = {group.name: group.units for group in groups(model, ["channels", "heads"])}
    plan = iterate(model, plan_for, lambda plan: cut(model, plan), ratio=0.5, iterations=4, units=units)
    assert seen == [40, 35, 30, 25]
    assert {len(kept) for name, kept in plan.items() if name.endswith("channels")} == {20}
    assert {len(kept) for name, kept in plan.items() if name.endswith("heads")} == {2}


@pytest.mark.parametrize(
    ("channels", "ratio", "iterations", "options"),
    [
        (12, 0.25, 4, {}),
        (32, 0.2, 5, {}),
        (37, 0.4, 3, {}),
        (37, 0.4, 3, {"scope": "global"}),
        (40, 0.45, 4, {"multiple_of": 6}),
    ],
)
def test_rounds_end_where_one_does_whatever_the_sizes(
    channels: int, ratio: float, iterations: int, options: dict[str, Any]
) -> None:
    model = open_model(tiny_model("llama", intermediate_size=channels))
    kinds = ["channels", "heads"]
    units = {group.name: group.units for group in groups(model, kinds)}

    def plan_for(current: Model, ratio: float, of: Mapping[str, int]) -> Plan:
        found = groups(current, kinds)
        scores = score(current, found, criterion="magnitude")
        return choose(current, found, scores, ratio=ratio, of=of, **options)

    plan = iterate(model, plan_for, lambda plan: cut(model, plan), ratio=ratio, iterations=iterations, units=units)
    assert counts(plan) == counts(plan_for(model, ratio, {}))


def counts(plan: Plan) -> Counter[str]:
    """How many units of each kind stay."""
    return sum((Counter({name.rsplit(".", 1)[-1]: len(kept)}) for name, kept in plan.items()), Counter())


def test_rounds_that_drop_layers_count_channels_of_the_first_model() -> None:
    model = open_model(tiny_model("llama", num_hidden_layers=7, intermediate_size=30))
    how = {"scope": "layer", "normalize": "mean", "multiple_of": 1, "protect": []}
    wanted = Wanted(["layers", "channels"], "magnitude", {}, how, ratio=0.25, iterations=3)
    plan = decide(model, wanted, Mending(), Surroundings()).plan
    assert len(plan["layers"]) == 5
    assert {name for name in plan if name != "layers"} == {f"layers.{layer}.channels" for layer in plan["layers"]}
    assert {len(kept) for name, kept in plan.items() if name != "layers"} == {22}


def test_a_round_too_small_to_drop_a_layer_folds_nothing() -> None:
    model = open_model(tiny_model("llama", num_hidden_layers=4))
    how = {"scope": "layer", "normalize": "mean", "multiple_of": 1, "protect": [0]}
    wanted = Wanted(["layers"], "magnitude", {}, how, ratio=0.25, iterations=4)
    plan = decide(model, wanted, Mending(fold=True), Surroundings(text=BATCHES)).plan
    assert len(plan["layers"]) == 3
