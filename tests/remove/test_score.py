"""Scores equal the formulae computed densely on the whole model, and do not depend on what should not matter."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prune.errors import PruneError
from prune.model.groups import groups
from prune.model.open import open as open_model
from prune.remove.score import criteria, score
from tests.tiny import FAMILIES, padded_batch, tiny_model, token_ids

BATCHES = [padded_batch(0), {"input_ids": token_ids(3, 9)}]


def inputs_of(module: nn.Module, path: str) -> torch.Tensor:
    """Everything that enters a linear at positions that are text: (tokens, features)."""
    seen = []
    handle = module.get_submodule(path).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    found = []
    for batch in BATCHES:
        with torch.no_grad():
            module(**batch)
        text = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
        found.append(seen.pop()[text])
    handle.remove()
    return torch.cat(found)


@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_wanda_is_weight_times_input_norm(family: str, norm: int) -> None:
    module = tiny_model(family)
    model = open_model(module)
    found = score(model, groups(model, ["channels", "heads", "query_heads"]), BATCHES, norm=f"l{norm}")
    for layer in range(3):
        for path, kind, per_unit in (("mlp.down_proj", "channels", 1), ("self_attn.o_proj", "heads", 12)):
            name = f"model.layers.{layer}.{path}"
            x = inputs_of(module, name)
            column = module.get_submodule(name).weight.norm(norm, dim=0) * x.norm(dim=0) / len(x) ** 0.5
            torch.testing.assert_close(found[f"layers.{layer}.{kind}"], column.reshape(-1, per_unit).sum(1).detach())
        queries = found[f"layers.{layer}.query_heads"]
        torch.testing.assert_close(queries.reshape(4, 2).sum(1), found[f"layers.{layer}.heads"])


@pytest.mark.parametrize("norm", [1, 2])
def test_magnitude_is_the_size_of_all_slices(norm: int) -> None:
    module = tiny_model("qwen2")
    model = open_model(module)
    found = score(model, groups(model, ["channels", "heads", "layers"]), criterion="magnitude", norm=f"l{norm}")
    layer = module.model.layers[1]
    size = {name: parameter.detach().abs() ** norm for name, parameter in layer.named_parameters()}
    channels = (
        size["mlp.gate_proj.weight"].sum(1) + size["mlp.up_proj.weight"].sum(1) + size["mlp.down_proj.weight"].sum(0)
    )
    torch.testing.assert_close(found["layers.1.channels"], channels)
    heads = sum(
        size[f"self_attn.{part}_proj.{leaf}"].reshape(4, -1).sum(1) for part in "qkv" for leaf in ("weight", "bias")
    ) + size["self_attn.o_proj.weight"].sum(0).reshape(4, -1).sum(1)
    torch.testing.assert_close(found["layers.1.heads"], heads)
    torch.testing.assert_close(found["layers"][1], sum(value.sum() for value in size.values()))


def hidden_states(module: nn.Module, batch: dict) -> list[torch.Tensor]:
    """What enters each layer, and what leaves the last (before the final norm)."""
    kept = []
    handles = [
        layer.register_forward_hook(lambda _, args, out: kept.extend([args[0], out])) for layer in module.model.layers
    ]
    with torch.no_grad():
        module(**batch)
    for handle in handles:
        handle.remove()
    return [kept[0], *kept[1::2]]


def test_block_influence_is_one_minus_the_mean_cosine() -> None:
    module = tiny_model("llama")
    model = open_model(module)
    found = score(model, groups(model, "layers"), BATCHES, criterion="redundancy")["layers"]
    cosines: list[list[torch.Tensor]] = [[], [], []]
    for batch in BATCHES:
        text = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
        states = hidden_states(module, batch)
        for layer in range(3):
            cosines[layer].append(torch.cosine_similarity(states[layer], states[layer + 1], dim=-1)[text])
    expected = torch.stack([1 - torch.cat(own).mean() for own in cosines])
    torch.testing.assert_close(found, expected)


def test_a_run_of_layers_is_scored_by_the_angle_it_turns() -> None:
    module = tiny_model("llama", num_hidden_layers=5)
    model = open_model(module)
    batch = {"input_ids": token_ids(2, 8)}
    found = score(model, groups(model, "layers"), [batch], criterion="redundancy", distance="angular", run=2)["layers"]
    states = hidden_states(module, batch)
    angle = [
        (torch.arccos(torch.cosine_similarity(states[i], states[i + 2], dim=-1)) / torch.pi).mean() for i in range(4)
    ]
    best = min(range(4), key=lambda start: angle[start])
    assert found.argsort(stable=True)[:2].sort().values.tolist() == [best, best + 1]
    torch.testing.assert_close(found.min(), angle[best])


def test_random_is_a_function_of_seed_and_name_alone() -> None:
    model = open_model(tiny_model("llama"))
    both = score(model, groups(model, ["channels", "heads"]), criterion="random", seed=3)
    alone = score(model, groups(model, "heads"), criterion="random", seed=3)
    assert torch.equal(both["layers.1.heads"], alone["layers.1.heads"])
    other = score(model, groups(model, "heads"), criterion="random", seed=4)
    assert not torch.equal(other["layers.1.heads"], alone["layers.1.heads"])


def test_equal_weights_give_equal_scores_in_every_family() -> None:
    llama = tiny_model("llama")
    scores = {}
    for family in ("llama", "mistral", "qwen2"):
        module = tiny_model(family, sliding_window=None) if family == "mistral" else tiny_model(family)
        module.load_state_dict(llama.state_dict(), strict=False)
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                parameter.data.zero_()
        model = open_model(module)
        scores[family] = score(model, groups(model, ["channels", "heads"]), BATCHES)
    for family in ("mistral", "qwen2"):
        assert all(torch.equal(scores[family][name], found) for name, found in scores["llama"].items())


def test_padding_does_not_count() -> None:
    model = open_model(tiny_model("llama"))
    found = groups(model, "channels")
    text = token_ids(1, 9)
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), text], dim=1)
    mask = (torch.arange(14) >= 5).long()[None]
    plain = score(model, found, [{"input_ids": text}])
    masked = score(model, found, [{"input_ids": padded, "attention_mask": mask}])
    for name in plain:
        torch.testing.assert_close(plain[name], masked[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(criteria()))
def test_every_criterion_says_what_it_is_in_one_line(name: str) -> None:
    from prune.remove.score import criterion

    doc = criterion(name).__doc__
    assert doc
    assert len(doc.splitlines()[0]) < 160


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"criterion": "wnda"}, "unknown criterion 'wnda'; did you mean 'wanda'"),
        ({"criterion": "wanda", "nrom": "l1"}, "unknown option of criterion wanda 'nrom'; did you mean 'norm'"),
        ({"criterion": "wanda", "norm": "l3"}, "option 'norm' of criterion wanda"),
        ({"criterion": "redundancy"}, "criterion 'redundancy' does not score channels; choices: .*wanda"),
        ({"criterion": "wanda", "batches": None}, "looks at data; give batches"),
    ],
)
def test_mistakes_are_answered_with_the_choices(arguments: dict, says: str) -> None:
    model = open_model(tiny_model("llama"))
    batches = arguments.pop("batches", BATCHES)
    with pytest.raises(PruneError, match=says):
        score(model, groups(model, "channels"), batches, **arguments)
