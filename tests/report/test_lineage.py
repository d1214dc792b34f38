"""Cuts one after the other, each in the units the one before left, are followed back to the first model."""

from __future__ import annotations

from typing import Any

from prune.model.open import open as open_model
from prune.remove.cut import cut
from prune.report.lineage import lineage
from tests.tiny import tiny_model


def records(model: Any, *plans: dict[str, list[int]]) -> list[dict[str, Any]]:
    found = []
    for plan in plans:
        small = cut(model, plan)
        found.append({"shape": [model.shape(), small.shape()], "plan": plan})
        model = small
    return found


def test_units_keep_their_first_numbers_through_three_cuts() -> None:
    model = open_model(tiny_model("llama"))  # 3 layers, 8 heads in 4 groups, 40 channels
    drop = {"layers": [0, 2]}
    heads = {f"layers.{n}.heads": [1, 2, 3] for n in range(2)}
    queries = {f"layers.{n}.query_heads": [0, 3, 5] for n in range(2)}
    channels = {f"layers.{n}.channels": list(range(20)) for n in range(2)}
    found = lineage(records(model, drop, heads | channels, queries))
    assert [layer.dropped for layer in found] == [False, True, False]
    assert found[2].queries == (2, 5, 7)
    assert found[2].left_kv_heads == (1, 2, 3)
    assert (found[2].channels, found[2].left_channels) == (40, 20)
    assert found[1].queries == tuple(range(8))  # nothing was taken from the dropped layer but all of it


def test_experts_and_their_channels() -> None:
    model = open_model(tiny_model("mixtral", num_local_experts=4, num_experts_per_tok=2))
    plan = {f"layers.{n}.experts": [1, 2, 3] for n in range(3)}
    (first, *_) = lineage(records(model, plan))
    assert (first.experts, first.left_experts, first.left_channels) == (4, (1, 2, 3), 40)


def test_what_is_left_is_what_the_tensors_say() -> None:
    model = open_model(tiny_model("llama"))
    found = records(model, {"layers.1.heads": [0], "layers.1.channels": [5, 6]}, {"layers": [1, 2]})
    left = [layer for layer in lineage(found) if not layer.dropped]
    assert [len(layer.queries) for layer in left] == found[-1]["shape"][1]["heads"]
    assert [layer.left_channels for layer in left] == found[-1]["shape"][1]["channels"]


def test_a_step_that_is_no_cut_begins_a_new_first_model() -> None:
    big, other = open_model(tiny_model("llama")), open_model(tiny_model("llama", num_hidden_layers=5))
    found = lineage(records(big, {"layers": [0, 1]}) + records(other, {"layers": [0, 1, 2, 3]}))
    assert [layer.dropped for layer in found] == [False] * 4 + [True]


def test_halves_of_layers_leave_the_other_half() -> None:
    model = open_model(tiny_model("llama"))
    found = lineage(records(model, {"attention": [1, 2], "mlp": [0, 2]}, {"attention": [0]}))
    assert [len(layer.queries) for layer in found] == [0, 8, 0]
    assert [layer.left_channels for layer in found] == [40, 0, 40]
    found = lineage(records(model, {"layers": [0, 2]}, {"attention": [1]}))
    assert [len(layer.queries) for layer in found] == [0, 8, 8]
    assert [layer.dropped for layer in found] == [False, True, False]


def test_a_narrower_model_keeps_its_heads() -> None:
    model = open_model(tiny_model("llama"))
    (first, *_) = lineage(records(model, {"width": list(range(24))}))
    assert (first.queries, first.left_channels) == (tuple(range(8)), 40)
