"""The modelling file beside a checkpoint loads it where prune is not there, and computes the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import prune
from prune import files
from prune.exports import hf
from prune.model import family as families
from prune.model.model import Model
from prune.remove.cut import cut
from tests import zoo

NAMES = [name for name in families.names() if families.of(name).differing]
CLIENT = """
import json, sys, torch, transformers
from pathlib import Path
from safetensors.torch import load_file, save_file

for folder, auto in json.loads(sys.argv[1]):
    model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True).eval()
    inputs = load_file(Path(folder, "..", "inputs.safetensors"))
    with torch.no_grad():
        found = {"logits": model(**inputs).logits.contiguous()}
        if auto == "AutoModelForCausalLM":
            options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
            found["tokens"] = model.generate(**inputs, **options)
    save_file(found, Path(folder, "..", "found.safetensors"))
spoken, prompt, said = sys.argv[2:]
speaks = transformers.pipeline("text-generation", spoken, trust_remote_code=True)
assert speaks(prompt, max_new_tokens=8, do_sample=False)[0]["generated_text"] == said
assert "prune" not in sys.modules
"""


def differing(name: str) -> Model:
    """A tiny model of a family without half of a layer's units and, where it can do so, one attention and one MLP."""
    model = prune.open(zoo.module(name))
    kinds = [kind for kind in ("channels", "heads", "experts") if kind in model.family.parts]
    plan = {"attention": [0, 1], "mlp": [0, 2]} if model.family.sublayers else {}
    for group in (group for kind in kinds for group in prune.groups(model, kind)):
        each = max(group.minimum, len(group.partitions[0]) // 2) // group.multiple * group.multiple
        if group.layer == 0:
            plan[group.name] = [unit for partition in group.partitions for unit in partition[-each:]]
    return cut(model, plan)


def said(model: Model, prompt: str) -> str:
    """The prompt and what a model goes on with."""
    tokenizer, module = model.tokenizer(), prune.load(model)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    found = module.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    text: str = tokenizer.decode(found[0], skip_special_tokens=True)
    return text


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Model, dict[str, torch.Tensor]]]:
    """Every family's model, and what a process without prune computed from its folder."""
    root = tmp_path_factory.mktemp("code")
    models, asked = {}, []
    for name in NAMES:
        models[name] = differing(name)
        prune.export(models[name], root / name / "hf", format="hf", code=True)
        config = json.loads((root / name / "hf" / "config.json").read_text())
        auto = next(auto for auto in config["auto_map"] if auto not in ("AutoConfig", "AutoModelForPreTraining"))
        save_file(zoo.batch(name), root / name / "inputs.safetensors")
        asked.append((str(root / name / "hf"), auto))
    env = {**os.environ, "PYTHONPATH": "", "HF_HOME": str(root / "home"), "HF_MODULES_CACHE": str(root / "modules")}
    spoken = cut(prune.open("bundled"), {"layers.0.channels": list(range(400))})
    prune.export(spoken, root / "spoken", format="hf", code=True)
    line = [sys.executable, "-c", CLIENT, json.dumps(asked), str(root / "spoken"), "def main", said(spoken, "def main")]
    done = subprocess.run(line, capture_output=True, text=True, cwd=root, env=env, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: (models[name], load_file(root / name / "found.safetensors")) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_tokens_without_prune(name: str, loaded: dict[str, tuple[Model, dict[str, Any]]]) -> None:
    model, found = loaded[name]
    module, inputs = prune.load(model), zoo.batch(name)
    assert not model.uniform
    assert torch.allclose(found["logits"], zoo.logits(module, inputs), atol=1e-5)
    if "tokens" in found:
        options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        assert torch.equal(found["tokens"], module.generate(**inputs, **options))


def test_what_is_read_again_is_the_checkpoint(tmp_path: Path) -> None:
    """Our own reader takes no code: it drops what names it."""
    model = differing("llama")
    record = prune.export(model, tmp_path / "hf", format="hf", code=True)
    assert sorted(record["files"]) == ["config.json", "model.safetensors", "modeling_prune.py"]
    again = prune.open(tmp_path / "hf")
    assert not hasattr(again.config, "auto_map") and "modeling_prune.py" not in again.files
    assert torch.equal(
        zoo.logits(prune.load(again), zoo.batch("llama")), zoo.logits(prune.load(model), zoo.batch("llama"))
    )
    assert files.verify(tmp_path / "hf") == []


def test_one_of_the_two_forms_is_needed() -> None:
    model, stock = differing("llama"), prune.open(zoo.module("llama"))
    assert "needs one of `code: true` and `as: deci`" in str(hf.check(model))
    assert "needs one of `code: true` and `as: deci`" in str(hf.check(model, code=True, as_="deci"))
    assert hf.check(model, code=True) is None
    assert "without code of ours" in str(hf.check(stock, code=True))
