"""A plan keeps the best units, as many as were asked for, moved only where no stock config would carry the rest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from prune.errors import PruneError
from prune.model.groups import groups
from prune.model.open import open as open_model
from prune.remove.choose import choose
from prune.remove.cut import cut
from tests.tiny import tiny_model


def plan_for(
    what: str | list[str], scores: dict[str, list[float]] | None = None, *, model: Any = None, **options: Any
) -> dict:
    model = model or open_model(tiny_model("mistral"))
    found = groups(model, what)
    given = {g.name: torch.arange(g.units, dtype=torch.float32) for g in found}
    given.update({name: torch.tensor(values) for name, values in (scores or {}).items()})
    return choose(model, found, given, **options)


def test_the_highest_scores_stay() -> None:
    plan = plan_for("heads", {"layers.1.heads": [4.0, 1.0, 3.0, 2.0]}, ratio=0.5)
    assert plan == {"layers.0.heads": [2, 3], "layers.1.heads": [0, 2], "layers.2.heads": [2, 3]}


def test_of_equal_scores_the_earlier_stay() -> None:
    assert plan_for("heads", {f"layers.{i}.heads": [1.0] * 4 for i in range(3)}, count=1)["layers.0.heads"] == [0, 1, 2]


def test_query_heads_are_kept_equally_in_every_partition() -> None:
    scores = {"layers.0.query_heads": [9.0, 8.0, 7.0, 6.0, 1.0, 2.0, 4.0, 3.0]}
    assert plan_for("query_heads", scores, ratio=0.5)["layers.0.query_heads"] == [0, 2, 5, 6]


def test_several_kinds_are_chosen_each_by_its_own_ratio() -> None:
    plan = plan_for(["channels", "heads"], ratio=0.25)
    assert {name.split(".")[-1]: len(kept) for name, kept in plan.items()} == {"channels": 30, "heads": 3}


@pytest.mark.parametrize(("multiple", "kept"), [(1, 30), (8, 32), (16, 32), (64, 40)])
def test_channels_are_kept_in_multiples(multiple: int, kept: int) -> None:
    assert len(plan_for("channels", ratio=0.25, multiple_of=multiple)["layers.0.channels"]) == kept


def test_global_ranking_takes_from_the_weakest_layers() -> None:
    scores = {
        "layers.0.heads": [10.0, 10.0, 10.0, 10.0],
        "layers.1.heads": [1.0, 2.0, 3.0, 4.0],
        "layers.2.heads": [5.0, 5.0, 5.0, 6.0],
    }
    plan = plan_for("heads", scores, count=3, scope="global", normalize="none")
    assert plan == {"layers.0.heads": [0, 1, 2, 3], "layers.1.heads": [3], "layers.2.heads": [0, 1, 2, 3]}


def test_global_ranking_of_query_heads_takes_one_from_every_partition_at_a_time() -> None:
    scores = {f"layers.{i}.query_heads": [float(u + 10 * i) for u in range(8)] for i in range(3)}
    plan = plan_for("query_heads", scores, count=5, scope="global", normalize="none")
    assert plan["layers.0.query_heads"] == [1, 3, 5, 7]
    assert plan["layers.1.query_heads"] == plan["layers.2.query_heads"] == list(range(8))


def test_global_ranking_leaves_every_layer_something() -> None:
    plan = plan_for("heads", ratio=0.7, scope="global")
    assert sum(map(len, plan.values())) == 12 - 8
    assert min(map(len, plan.values())) >= 1


def test_protected_layers_and_groups_stay_whole() -> None:
    assert set(plan_for("heads", ratio=0.5, protect=[0, "layers.2.heads"])) == {"layers.1.heads"}
    assert 0 in plan_for("layers", {"layers": [0.0, 1.0, 2.0]}, count=2, protect=[0])["layers"]
    assert plan_for(["heads", "channels"], ratio=0.5, protect=["heads"]).keys() == {
        f"layers.{i}.channels" for i in range(3)
    }


@pytest.mark.parametrize("width", [48, 64, 96])
def test_the_counts_moved_to_are_those_the_config_class_takes(width: int) -> None:
    """A Llama with biases has no other stock type: its heads must divide the width."""
    model = open_model(tiny_model("llama", hidden_size=width, head_dim=8, attention_bias=True))
    for count in range(1, 4):
        plan = plan_for("heads", model=model, count=count)
        heads = 2 * len(plan["layers.0.heads"])
        assert width % heads == 0
        CONFIG_MAPPING["llama"](hidden_size=width, num_attention_heads=heads, num_key_value_heads=heads // 2)
        assert cut(model, plan).config.model_type == "llama"


def test_a_llama_without_biases_keeps_the_count_and_becomes_mistral() -> None:
    model = open_model(tiny_model("llama", hidden_size=64, head_dim=8))
    plan = plan_for("heads", model=model, count=1)
    assert len(plan["layers.0.heads"]) == 3
    small = cut(model, plan)
    assert small.config.model_type == "mistral"
    assert small.config.sliding_window is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "give a ratio or a count"),
        ({"ratio": 0.5, "count": 1}, "both given; leave one out"),
        ({"ratio": 1.0}, "at least 0 and below 1"),
        ({"ratio": -0.1}, "at least 0 and below 1"),
        ({"count": 4}, "layers.0.heads: removing 4 of 4 leaves nothing"),
        ({"ratio": 0.99}, "leaves nothing"),
        ({"ratio": 0.9, "scope": "global"}, "leaves some layer with nothing"),
        ({"ratio": 0.5, "protect": ["layers.7.heads"]}, "unknown group or layer to protect 'layers.7.heads'"),
        ({"ratio": 0.5, "protect": [3]}, "unknown group or layer to protect '3'"),
    ],
)
def test_mistakes_are_one_line(options: dict, says: str) -> None:
    with pytest.raises(PruneError, match=says):
        plan_for("heads", **options)


def test_removing_every_layer_is_refused() -> None:
    with pytest.raises(PruneError, match="leaves nothing"):
        plan_for("layers", count=3)
    with pytest.raises(PruneError, match="3 units are protected, but only 2 would stay"):
        plan_for("layers", count=1, protect=[0, 1, 2])
