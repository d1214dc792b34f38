"""Two cuts in a row are one cut by the composed plan; rounds end at the ratio that was asked."""

from __future__ import annotations

import torch

from prune.model.groups import groups
from prune.model.open import open as open_model
from prune.remove.choose import choose
from prune.remove.cut import cut
from prune.remove.iterate import compose, iterate
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

    def plan_for(current, ratio):
        found = groups(current, ["channels", "heads"])
        seen.append(found[0].units)
        return choose(current, found, score(current, found, BATCHES), ratio=ratio)

    plan = iterate(model, plan_for, lambda plan: cut(model, plan), ratio=0.5, iterations=4)
    assert seen == [40, 35, 30, 25]
    assert {len(kept) for name, kept in plan.items() if name.endswith("channels")} == {20}
    assert {len(kept) for name, kept in plan.items() if name.endswith("heads")} == {2}
