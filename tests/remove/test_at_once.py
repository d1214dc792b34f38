"""One walk gives what scoring, choosing and refitting one after the other give."""

from __future__ import annotations

import pytest
import torch

import prune
from prune.model.groups import groups
from prune.model.open import open as open_model
from prune.remove.at_once import Choosing, possible, score_and_refit
from prune.remove.choose import choose
from prune.remove.refit import refit
from tests.tiny import padded_batch, tiny_model, token_ids

BATCHES = [padded_batch(0), {"input_ids": token_ids(8, 40)}, {"input_ids": token_ids(8, 40, seed=1)}]


@pytest.mark.parametrize(
    ("family", "criterion", "linears", "protect"),
    [
        ("llama", "wanda", "outputs", []),
        ("llama", "obs", "all", [1]),
        ("olmo2", "flap", "outputs", []),
        ("gpt_neox", "wanda", "outputs", []),
        ("mixtral", "wanda", "outputs", []),
    ],
)
def test_one_walk_is_the_three_in_turn(family: str, criterion: str, linears: str, protect: list[int]) -> None:
    model = open_model(tiny_model(family))
    kinds = ["channels"] if family == "gpt_neox" else ["channels", "heads"]
    found = groups(model, kinds)
    amount = {"ratio": 0.25, "protect": protect}
    scores = prune.score(model, found, BATCHES, criterion=criterion)
    plan = choose(model, found, scores, **amount)
    record: dict[str, object] = {}
    expected = refit(model, plan, BATCHES, target="residual", linears=linears, record=record)
    noted: dict[str, object] = {}
    choosing = Choosing(criterion, {}, amount)
    assert possible(kinds, choosing, "residual")
    once = score_and_refit(model, found, BATCHES, choosing, target="residual", linears=linears, record=noted)
    assert once.plan == plan and noted == record
    assert scores.keys() == once.scores.keys()
    assert all(torch.equal(scores[name], once.scores[name]) for name in scores)
    for name, info in expected.tensors.info.items():
        assert once.model.tensors.info[name] == info
        assert torch.equal(once.model.tensors.read(name), expected.tensors.read(name)), name


@pytest.mark.parametrize(
    ("kinds", "criterion", "amount", "target"),
    [
        (["layers"], "redundancy", {}, "auto"),  # spans the layers
        (["channels"], "magnitude", {}, "auto"),  # looks at no data
        (["channels"], "wanda", {"scope": "global"}, "auto"),  # ranks across layers
        (["channels", "width"], "wanda", {}, "auto"),
        (["channels"], "wanda", {}, "pruned"),  # the uncut stream is not walked
    ],
)
def test_what_needs_all_scores_first_is_told_apart(kinds: list, criterion: str, amount: dict, target: str) -> None:
    assert not possible(kinds, Choosing(criterion, {}, {"ratio": 0.25, **amount}), target)
