"""A cut slices what belongs together, and the proof tells a right one from a wrong one."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from prune.errors import PruneError
from prune.model.groups import groups
from prune.model.open import open as open_model
from prune.model.save import load
from prune.model.tensors import Edit, edited
from prune.model.walk import logits
from prune.remove.choose import choose
from prune.remove.cut import cut
from prune.remove.prove import prove
from prune.remove.score import score
from prune.remove.stream import measured, norms
from tests import zoo
from tests.tiny import FAMILIES, padded_batch, tiny_model, token_ids

BATCH = padded_batch()


@pytest.mark.parametrize("ratio", [0.25, 0.5])
@pytest.mark.parametrize("what", ["heads", "query_heads", "channels", "layers", ["channels", "heads"]])
@pytest.mark.parametrize("family", FAMILIES)
def test_masked_equals_sliced(family: str, what: str | list[str], ratio: float) -> None:
    model = open_model(tiny_model(family))
    found = groups(model, what)
    plan = choose(model, found, score(model, found, criterion="random", seed=1), ratio=ratio)
    small = cut(model, plan)
    proof = prove(model, plan, small, BATCH)
    assert proof["max_relative_difference"] < 1e-5
    if not (what == "query_heads" and ratio == 0.25):  # 2 of 8 cannot be taken equally from 4 key-value heads
        assert small.tensors.parameters < model.tensors.parameters


def test_dead_units_cost_nothing() -> None:
    module = tiny_model("qwen2")
    for layer in module.model.layers:
        layer.mlp.down_proj.weight.data[:, 10:20] = 0
        layer.self_attn.o_proj.weight.data[:, 12:24] = 0
    model = open_model(module)
    plan = {f"layers.{i}.channels": [*range(10), *range(20, 40)] for i in range(3)}
    plan |= {f"layers.{i}.heads": [0, 2, 3] for i in range(3)}
    before, after = (next(logits(m, [BATCH])) for m in (model, cut(model, plan)))
    torch.testing.assert_close(before, after)


def test_nothing_is_read_until_asked_for() -> None:
    model = open_model(tiny_model("llama"))

    def unread(name: str) -> torch.Tensor:
        raise AssertionError(name)

    blind = replace(model, tensors=replace(model.tensors, read=unread))
    small = cut(blind, {"layers.0.heads": [0], "layers": [0, 2]})
    assert small.tensors.info["model.layers.0.self_attn.k_proj.weight"].shape == (6, 48)
    assert small.config.num_hidden_layers == 2


def test_per_layer_lists_go_with_the_layers() -> None:
    types = ["full_attention", "sliding_attention", "full_attention"]
    module = tiny_model("qwen2", use_sliding_window=True, sliding_window=4, layer_types=types)
    model = open_model(module)
    plan = {"layers": [1, 2]}
    small = cut(model, plan)
    assert small.config.layer_types == types[1:]
    assert prove(model, plan, small, {"input_ids": token_ids(2, 12)})["max_relative_difference"] == 0
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    loaded = load(small)
    assert [layer.self_attn.layer_idx for layer in loaded.model.layers] == [0, 1]
    assert torch.equal(loaded.generate(**BATCH, **options), loaded.generate(**BATCH, **options, use_cache=False))


def test_head_dim_is_written_where_it_is_not_width_by_heads() -> None:
    small = cut(open_model(tiny_model("qwen2")), {f"layers.{i}.heads": [0, 1, 3] for i in range(3)})
    assert small.config.to_dict()["head_dim"] == 6
    assert small.config.num_attention_heads == 6


@pytest.mark.parametrize("wrong", ["positions", "layer"])
def test_the_proof_refuses_a_wrong_cut(wrong: str) -> None:
    model = open_model(tiny_model("llama"))
    plan = {"layers.1.channels": list(range(20))} if wrong == "positions" else {"layers": [0, 1]}
    other = {"layers.1.channels": [*range(19), 30]} if wrong == "positions" else {"layers": [0, 2]}
    with pytest.raises(PruneError, match=r"model\.layers\.1: masked and sliced outputs differ"):
        prove(model, plan, cut(model, other), BATCH)


def test_the_proof_sees_one_wrong_position() -> None:
    model = open_model(tiny_model("llama"))
    plan = {"layers.2.heads": [0, 1, 2]}
    small = cut(model, plan)
    name = "model.layers.2.self_attn.v_proj.weight"
    rows = torch.arange(18)
    rows[3], rows[4] = 4, 3
    edits = {n: Edit(n, {0: rows} if n == name else {}) for n in small.tensors.info}
    with pytest.raises(PruneError, match="the cut is wrong"):
        prove(model, plan, replace(small, tensors=edited(small.tensors, edits)), BATCH)


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ({"layers.9.heads": [0]}, "unknown group 'layers.9.heads'"),
        ({"layers.0.haeds": [0]}, "unknown kind of group in the plan 'haeds'; did you mean 'heads'"),
        ({"layers.0.heads": []}, "layers.0.heads: a plan must keep at least 1"),
        ({"layers": []}, "layers: a plan must keep at least 1"),
        ({"layers.0.heads": [0, 4]}, "ascending whole numbers from 0 to 3"),
        ({"layers.0.heads": [1, 0]}, "ascending whole numbers"),
        ({"layers.0.heads": [0, 0]}, "ascending whole numbers"),
        ({"layers.0.query_heads": [0, 1, 2]}, "layers.0.query_heads"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(plan: dict, says: str) -> None:
    with pytest.raises(PruneError, match=says):
        cut(open_model(tiny_model("llama")), plan)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_narrower_stream_is_proved_in_the_type_that_is_stored(family: str) -> None:
    module = zoo.module(family)
    model = open_model(copy.deepcopy(module).to(torch.bfloat16))
    batch = {"input_ids": token_ids(2, 12)}
    found = groups(model, "width")
    model = measured(model, [batch])
    assert model.energies.keys() == set(norms(model))
    plan = choose(model, found, score(model, found, [batch], criterion="activation"), ratio=0.25)
    small = cut(model, plan)
    prove(model, plan, small, batch)
    wrong = cut(replace(model, energies={name: e + 1 for name, e in model.energies.items()}), plan)
    with pytest.raises(PruneError, match="the cut is wrong"):
        prove(model, plan, wrong, batch)


def test_norms_are_rescaled_by_the_ratio_that_was_measured() -> None:
    module = tiny_model("llama")
    seen: list[torch.Tensor] = []
    path = "model.layers.1.post_attention_layernorm"
    batch = {"input_ids": token_ids(2, 12)}
    module.get_submodule(path).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        module(**batch)
    kept = list(range(5, 41))
    model = measured(open_model(module), [batch])
    small = cut(model, {"width": kept})
    energy = seen[0].square().mean((0, 1))
    expected = (energy[kept].mean() / energy.mean()).sqrt() * module.get_submodule(path).weight[kept]
    torch.testing.assert_close(small.tensors.read(f"{path}.weight"), expected.detach())
