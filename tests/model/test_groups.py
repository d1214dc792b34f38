"""Groups: every unit is the slices that belong to it, and no position belongs to two."""

from __future__ import annotations

import pytest
import torch

from prune.errors import PruneError
from prune.model.groups import KINDS, groups
from prune.model.open import open as open_model
from tests.tiny import FAMILIES, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["heads", "query_heads", "channels"])
def test_units_own_disjoint_positions_inside_the_tensors(family: str, kind: str) -> None:
    model = open_model(tiny_model(family))
    for group in groups(model, kind):
        assert group.consumers
        for piece in group.slices:
            positions = piece.index.reshape(-1)
            assert len(positions.unique()) == len(positions)
            assert positions.max() < model.tensors.info[piece.name].shape[piece.dim]


def test_a_head_is_its_key_and_value_rows_with_its_queries() -> None:
    model = open_model(tiny_model("qwen2"))  # 8 heads, 4 key-value heads of 6; biases on q, k, v
    group = groups(model, "heads")[2]
    assert group.name == "layers.2.heads"
    found = {piece.name.removeprefix("model.layers.2.self_attn."): piece.index[1].tolist() for piece in group.slices}
    own, queries = list(range(6, 12)), list(range(12, 24))
    assert found == {
        "q_proj.weight": queries,
        "q_proj.bias": queries,
        "k_proj.weight": own,
        "k_proj.bias": own,
        "v_proj.weight": own,
        "v_proj.bias": own,
        "o_proj.weight": queries,
    }


def test_query_heads_are_lost_equally_by_every_key_value_head() -> None:
    group = groups(open_model(tiny_model("llama")), "query_heads")[0]
    assert group.partitions == ((0, 1), (2, 3), (4, 5), (6, 7))
    assert {piece.name.split(".")[-2] for piece in group.slices} == {"q_proj", "o_proj"}


def test_layers_own_whole_tensors() -> None:
    model = open_model(tiny_model("llama"))
    (group,) = groups(model, "layers")
    assert group.units == 3
    assert all(name.startswith("model.layers.1.") for name in group.whole[1])
    outside = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    assert {name for unit in group.whole for name in unit} | outside == set(model.tensors.info)


def test_an_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(PruneError, match="did you mean 'heads'"):
        groups(open_model(tiny_model("llama")), "haeds")


def test_the_index_is_shared_between_layers_of_one_size() -> None:
    first, second, _ = groups(open_model(tiny_model("llama")), "channels")
    assert first.slices[0].index is second.slices[0].index
    assert first.slices[0].index.dtype == torch.int64
    assert set(KINDS) >= {"heads", "query_heads", "channels", "layers"}
