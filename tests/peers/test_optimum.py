"""Optimum for ONNX 0.1.0 and the transformers 4.57 it pins load what we write: the same tokens, or as preflight says.

They cannot stand beside the transformers that prune needs: OPTIMUM_PYTHON names the Python of an environment of their
own, which `tox -e peer-optimum` makes.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import prune
from prune.exports import preflight
from prune.model.model import Model
from tests import zoo
from tests.tiny import padded_batch, tiny_model

CLIENT = Path(__file__).with_name("optimum_client.py")
PYTHON = os.environ.get("OPTIMUM_PYTHON", "")
NEW = 20


def short(model: Model, kind: str = "dense") -> Model:
    """Two layers of a model, as they are, with a head less in each, or one of them narrower."""
    layers = prune.groups(model, "layers")[0]
    model = prune.cut(model, {layers.name: [0, layers.units - 1]})
    if kind == "dense":
        return model
    groups = prune.groups(model, "heads" if kind == "fewer heads" else "channels")
    chosen = groups if kind == "fewer heads" else groups[:1]
    scores = {group.name: torch.arange(float(group.units)) for group in chosen}
    return prune.cut(model, prune.choose(model, chosen, scores, count=1 if kind == "fewer heads" else 8))


def far() -> Model:
    """A Llama whose rotary base is not the default: transformers 5 states it elsewhere than 4 reads it."""
    rotary = {"rope_type": "default", "rope_theta": 500_000.0}
    return prune.open(tiny_model("llama", num_hidden_layers=1, rope_parameters=rotary))


MODELS = {
    "bundled": lambda: short(prune.open("bundled")),
    "llama, far": far,
    "gpt2": lambda: short(prune.open(zoo.module("gpt2"))),
    "llama, fewer heads": lambda: short(prune.open(zoo.module("llama")), "fewer heads"),
    "llama, layers differ": lambda: short(prune.open(zoo.module("llama")), "layers differ"),
    "phi3": lambda: short(prune.open(zoo.module("phi3"))),
    "bert": lambda: short(prune.open(zoo.module("bert"))),
}
CLASSIFIERS = ("bert",)


def expected(module: PreTrainedModel, name: str, inputs: dict[str, torch.Tensor]) -> Any:
    if name in CLASSIFIERS:
        return module(**inputs).logits
    found = module.generate(**inputs, max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0)
    return found[:, inputs["input_ids"].shape[1] :].tolist()


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the peer says of every model, as checkpoint and as graph, beside what PyTorch says here."""
    if not PYTHON:
        pytest.skip("OPTIMUM_PYTHON names no Python with optimum-onnx; tox -e peer-optimum does")
    root = tmp_path_factory.mktemp("optimum")
    jobs: list[dict[str, Any]] = []
    found: dict[str, dict[str, Any]] = {}
    for number, (name, make) in enumerate(MODELS.items()):
        model, kind = make(), "classifier" if name in CLASSIFIERS else "lm"
        prune.save(model, root / f"{number}")
        prune.export(model, root / f"{number}-onnx")
        inputs = padded_batch()
        given = {"ids": inputs["input_ids"].tolist(), "mask": inputs["attention_mask"].tolist()}
        jobs += [{"kind": f"hf-{kind}", "folder": str(root / f"{number}"), **given}]
        jobs += [{"kind": f"onnx-{kind}", "folder": str(root / f"{number}-onnx"), **given}]
        module = prune.load(model, dtype=torch.float32).eval()
        verdicts = {row["runtime"]: row["verdict"] for row in preflight.table(model)}
        with torch.no_grad():
            found[name] = {"expected": expected(module, name, inputs), "verdicts": verdicts, "uniform": model.uniform}
    (root / "jobs.json").write_text(json.dumps(jobs))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [PYTHON, str(CLIENT), str(root / "jobs.json")], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    for name, hf, onnx in zip(found, said[::2], said[1::2], strict=True):
        found[name] |= {"hf": hf, "onnx": onnx}
    return found


def same(found: dict[str, Any], wanted: Any) -> bool:
    if "logits" in found:
        return torch.allclose(torch.tensor(found["logits"]), wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))
    return found.get("tokens") == wanted


@pytest.mark.parametrize("name", MODELS)
def test_optimum_answers_alike_or_as_preflight_says(name: str, answers: dict[str, dict[str, Any]]) -> None:
    own = answers[name]
    assert same(own["onnx"], own["expected"]) == (own["verdicts"]["Optimum"] != "will not"), own


@pytest.mark.parametrize("name", MODELS)
def test_transformers_4_answers_alike_where_the_type_is_stock(name: str, answers: dict[str, dict[str, Any]]) -> None:
    own = answers[name]
    assert same(own["hf"], own["expected"]) == own["uniform"], own


def test_the_tokenizer_is_read_by_its_plain_class(answers: dict[str, dict[str, Any]]) -> None:
    words = prune.open("bundled").tokenizer()("def f(x): return x")["input_ids"]
    assert answers["bundled"]["hf"]["words"] == answers["bundled"]["onnx"]["words"] == words
