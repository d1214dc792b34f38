"""Save then load is equal; stock transformers reads uniform results, and refuses the others loudly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from prune import files
from prune.errors import PruneError
from prune.model.open import open as open_model
from prune.model.save import load, save
from prune.remove.cut import cut
from tests.tiny import FAMILIES, padded_batch, tiny_model

BY_LAYER = {"layers.0.heads": [0, 2, 3], "layers.1.channels": list(range(0, 40, 2)), "layers": [0, 1]}


def forward(module: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = module(**padded_batch()).logits
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_no_op_changes_no_bit(tmp_path: Path, family: str) -> None:
    module = tiny_model(family, dtype=torch.bfloat16, tie_word_embeddings=True)
    module.save_pretrained(tmp_path / "in")
    save(cut(open_model(tmp_path / "in"), {}), tmp_path / "out")
    before, after = open_model(tmp_path / "in"), open_model(tmp_path / "out")
    assert list(before.tensors.info) == list(after.tensors.info)
    assert all(torch.equal(before.tensors.read(n), after.tensors.read(n)) for n in before.tensors.info)
    assert torch.equal(forward(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), forward(module))
    assert torch.equal(forward(load(tmp_path / "out")), forward(module))


def test_inputs_are_never_changed() -> None:
    module = tiny_model("llama")
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    small = load(cut(open_model(module), {"layers.0.heads": [1, 2, 3]}))
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.zero_()
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_that_differ_load_with_ours_and_with_the_auto_classes(tmp_path: Path, family: str) -> None:
    small = cut(open_model(tiny_model(family)), BY_LAYER)
    assert small.config.model_type == f"prune_{family}"
    save(small, tmp_path / "out")
    ours = load(tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(forward(ours), forward(theirs))
    assert torch.equal(forward(ours), forward(load(small)))
    assert AutoConfig.from_pretrained(tmp_path / "out").model_type == f"prune_{family}"
    hidden = AutoModel.from_pretrained(tmp_path / "out")(**padded_batch()).last_hidden_state
    assert torch.equal(theirs.lm_head(hidden), theirs(**padded_batch()).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_with_the_cache_equals_generation_without(family: str) -> None:
    module = load(cut(open_model(tiny_model(family)), BY_LAYER))
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with_cache = module.generate(**padded_batch(), **options)
    assert torch.equal(with_cache, module.generate(**padded_batch(), **options, use_cache=False))


def test_a_cut_of_a_cut_reopens_with_its_own_shapes(tmp_path: Path) -> None:
    first = cut(open_model(tiny_model("llama")), BY_LAYER)
    save(first, tmp_path / "a")
    second = cut(open_model(tmp_path / "a"), {"layers.1.heads": [0, 1, 3], "layers.0.channels": list(range(20))})
    save(second, tmp_path / "b")
    found = open_model(tmp_path / "b")
    assert [found.sizes(i)["kv_heads"] for i in (0, 1)] == [3, 3]
    assert found.sizes(0)["channels"] == found.sizes(1)["channels"] == 20
    # All layers are alike again, so it is a stock checkpoint again, under the type that takes 6 heads of width 48.
    assert found.uniform
    assert torch.equal(forward(load(found)), forward(AutoModelForCausalLM.from_pretrained(tmp_path / "b")))


PLAIN = """
import sys, torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM
assert "prune" not in sys.modules
for load in (AutoModelForCausalLM.from_pretrained, LlamaForCausalLM.from_pretrained):
    for folder in sys.argv[1:]:
        try:
            load(folder)
        except (ValueError, RuntimeError, OSError) as error:
            print("refused", type(error).__name__)
        else:
            print("loaded")
"""


def test_plain_transformers_refuses_what_it_cannot_build(tmp_path: Path) -> None:
    model = open_model(tiny_model("llama"))
    for name, plan in {"heads": {"layers.0.heads": [0, 1]}, "channels": {"layers.1.channels": [0, 1, 2]}}.items():
        save(cut(model, plan), tmp_path / name)
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, tmp_path / "heads", tmp_path / "channels"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["refused"] * 4, done.stdout


def test_a_saved_folder_verifies_and_a_changed_one_does_not(tmp_path: Path) -> None:
    save(open_model(tiny_model("llama")), tmp_path / "out")
    assert files.verify(tmp_path / "out") == []
    (tmp_path / "out" / "config.json").write_text("{}")
    assert files.verify(tmp_path / "out") == ["config.json: changed"]


def test_a_folder_that_stands_is_replaced_only_when_asked_and_ours(tmp_path: Path) -> None:
    model = open_model(tiny_model("llama"))
    save(model, tmp_path / "out")
    with pytest.raises(PruneError, match="--overwrite"):
        save(model, tmp_path / "out")
    save(model, tmp_path / "out", overwrite=True)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").write_text("years of work")
    with pytest.raises(PruneError, match="never replaced"):
        save(model, tmp_path / "foreign", overwrite=True)


@pytest.mark.parametrize("kind", ["default", "linear"])
def test_rotary_settings_stand_where_transformers_4_reads_them_too(kind: str, tmp_path: Path) -> None:
    rotary = {"rope_type": kind, "rope_theta": 500_000.0} | ({"factor": 2.0} if kind == "linear" else {})
    model = open_model(tiny_model("llama", rope_parameters=rotary))
    save(model, tmp_path / "once")
    stated = json.loads((tmp_path / "once" / "config.json").read_text())
    assert stated["rope_theta"] == 500_000.0
    assert stated.get("rope_scaling") == (None if kind == "default" else {"rope_type": "linear", "factor": 2.0})
    again = open_model(tmp_path / "once")
    assert {name: again.config.rope_parameters[name] for name in rotary} == rotary
    save(again, tmp_path / "twice")
    assert (tmp_path / "twice" / "config.json").read_text() == (tmp_path / "once" / "config.json").read_text()
