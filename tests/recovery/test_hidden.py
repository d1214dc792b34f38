"""The loss on hidden states, and which layers are compared."""

from __future__ import annotations

import pytest
import torch

from prune.errors import PruneError
from prune.recovery.hidden import hidden_loss, kept_layers, layer_map, projections, watching
from tests.tiny import padded_batch, tiny_model


@pytest.mark.parametrize("distance", ["mse", "cosine"])
def test_it_is_the_plain_formula_over_the_tokens_in_the_mask(distance: str) -> None:
    generator = torch.Generator().manual_seed(0)
    mine, theirs = (torch.randn(2, 5, 7, generator=generator) for _ in range(2))
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    each = []
    for row, column in mask.nonzero().tolist():
        a, b = mine[row, column], theirs[row, column]
        each.append(((a - b) ** 2).mean() if distance == "mse" else 1 - (a @ b) / (a.norm() * b.norm()))
    expected = torch.stack(each).mean()
    torch.testing.assert_close(hidden_loss(mine, theirs, mask, distance, total=8), expected)
    assert hidden_loss(mine, mine, mask, distance, total=8).abs() < 1e-6


def test_layers_are_spread_evenly_and_the_last_meets_the_last() -> None:
    assert layer_map(3, 9) == {0: 0, 1: 4, 2: 8}
    assert layer_map(4, 4) == {0: 0, 1: 1, 2: 2, 3: 3}
    assert layer_map(1, 5) == {0: 0}


def test_a_plan_says_which_layers_are_left_and_a_recipe_overrides_it() -> None:
    plans: list[dict] = [
        {"plan": {"layers": [0, 2, 3, 5]}},
        {"perplexity": {}},
        {"plan": {"layers.0.heads": [1]}},
        {"plan": {"layers": [0, 1, 3]}},
    ]
    kept = kept_layers(plans)
    assert kept == [0, 2, 5]
    assert layer_map(3, 6, kept=kept) == {0: 0, 1: 2, 2: 5}
    assert layer_map(3, 6, kept=kept, given={1: 4}) == {1: 4}
    assert kept_layers([*plans, {"layers": [3, 4]}]) is None
    assert kept_layers(plans[1:3]) is None


@pytest.mark.parametrize("given", [{3: 0}, {0: 6}, {-1: 0}])
def test_layers_that_are_not_there_are_refused(given: dict[int, int]) -> None:
    with pytest.raises(
        PruneError, match=r"hidden: maps layer .* choices: 0 to 2 of the student, 0 to 5 of the teacher"
    ):
        layer_map(3, 6, given=given)


def test_what_leaves_a_layer_is_what_enters_the_next() -> None:
    model = tiny_model("llama")
    entered = []
    hook = model.model.layers[1].register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    with watching(model, ["model.layers.0", "model.layers.2"]) as seen:
        model(**padded_batch())
    hook.remove()
    assert torch.equal(seen["model.layers.0"], entered[0])
    assert not model.model.layers[0]._forward_hooks
    torch.testing.assert_close(model.lm_head(model.model.norm(seen["model.layers.2"])), model(**padded_batch()).logits)


def test_projections_are_there_only_where_widths_differ() -> None:
    assert len(projections(3, 8, 8, seed=0)) == 0
    made = projections(2, 8, 12, seed=0)
    assert [tuple(linear.weight.shape) for linear in made.values()] == [(12, 8), (12, 8)]
    assert all(linear.bias is None for linear in made.values())
