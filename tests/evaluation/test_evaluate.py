"""What `evaluate` says is what the formulas say: perplexity over documents, texts, tasks, both models alike."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import prune
from prune import files
from prune.cli import run
from prune.errors import PruneError
from prune.evaluation import evaluate as module
from prune.evaluation.generations import generate
from prune.recipe import apply, check
from prune.report import summary
from tests.questions import write

TEXTS = ["def read(path):\n    return path", "class Node:\n    pass\n", "import os"]


@pytest.fixture(scope="module")
def bundled() -> prune.Model:
    return prune.open("bundled")


@pytest.fixture(scope="module")
def small(bundled: prune.Model) -> prune.Model:
    return prune.cut(bundled, {"layers": [0, 1, 2, 3, 5]})


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": one}) + "\n" for one in TEXTS))
    return str(path)


@torch.inference_mode()
def loss(model: Any, ids: list[int]) -> tuple[float, int]:
    """Summed -log p(token | all before it) of all but the first, in nats."""
    given = torch.tensor([ids])
    likely = model(input_ids=given, use_cache=False).logits.log_softmax(-1)
    chosen = likely[0, :-1].gather(-1, given[0, 1:, None])
    return -chosen.sum().item(), len(ids) - 1


def test_a_type_is_named_or_given_and_float32_when_nothing_is_said(bundled: prune.Model, text: str) -> None:
    def found(**dtype: Any) -> float:
        return float(prune.evaluate(bundled, perplexity=text, length=8, samples=2, **dtype)["perplexity"]["model"])

    assert found() == found(dtype="auto") == found(dtype="float32") == found(dtype=torch.float32)
    assert found(dtype="bfloat16") == found(dtype=torch.bfloat16) != found()
    for wrong in ("flaot32", torch.int8, 7):
        with pytest.raises(PruneError, match="unknown dtype .* choices: auto, bfloat16, float16, float32"):
            found(dtype=wrong)


def test_perplexity_is_weighted_by_tokens_and_keeps_documents_apart(bundled: prune.Model, text: str) -> None:
    whole, tokenizer = prune.load(bundled, dtype=torch.float32).eval(), bundled.tokenizer()
    end = tokenizer.eos_token_id
    documents = [tokenizer(one, add_special_tokens=False)["input_ids"] for one in TEXTS]
    joined = [end, *documents[0], end, *documents[1], end, *documents[2]]
    apart = [loss(whole, [end, *one]) for one in documents]
    expected = {
        "joined": math.exp(loss(whole, joined)[0] / (len(joined) - 1)),
        "separate": math.exp(sum(own for own, _ in apart) / sum(count for _, count in apart)),
    }
    for name, value in expected.items():
        found = prune.evaluate(bundled, perplexity=text, length=64, documents=name, dtype=torch.float32)["perplexity"]
        assert found["model"] == pytest.approx(value, rel=1e-5)
        assert {key: found[key] for key in ("data", "length", "stride", "documents", "tokens")} == {
            "data": {"data": text, "field": "text"},
            "length": 64,
            "stride": 63,
            "documents": name,
            "tokens": len(joined) - 1 if name == "joined" else sum(count for _, count in apart),
        }
    assert expected["joined"] != pytest.approx(expected["separate"], rel=1e-3)


def test_models_whose_vocabularies_differ_are_not_compared(bundled: prune.Model, tmp_path: Path, text: str) -> None:
    other = prune.open(prune.save(bundled, tmp_path / "other"))
    both: Any = {"before": bundled, "after": other}
    found = prune.evaluate(both, perplexity=text, length=8, samples=1)["perplexity"]
    assert found["before"] == found["after"]
    words = json.loads((tmp_path / "other" / "tokenizer.json").read_text())
    known = words["model"]["vocab"]
    one, two = list(known)[100:102]
    known[one], known[two] = known[two], known[one]
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(PruneError, match="after and before differ in 2 of 4,096 tokens of their vocabularies"):
        prune.evaluate(both, perplexity=text, length=8, samples=1)


@torch.inference_mode()
def greedy(model: Any, ids: list[int], count: int) -> list[int]:
    for _ in range(count):
        ids = [*ids, int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())]
    return ids


def test_texts_are_the_likeliest_tokens_of_each_model(bundled: prune.Model, small: prune.Model) -> None:
    found = prune.evaluate({"before": bundled, "after": small}, generate=["def read(", "import"], tokens=6)
    tokenizer = bundled.tokenizer()
    assert [one["prompt"] for one in found["generations"]] == ["def read(", "import"]
    for name, model in {"before": bundled, "after": small}.items():
        whole = prune.load(model, dtype=torch.float32).eval()
        for one in found["generations"]:
            ids = tokenizer(one["prompt"])["input_ids"]
            assert one[name] == tokenizer.decode(greedy(whole, ids, 6)[len(ids) :])


def test_a_models_own_settings_do_not_make_texts_random(bundled: prune.Model) -> None:
    whole = prune.load(bundled).eval()
    whole.generation_config.do_sample, whole.generation_config.temperature = True, 50.0
    assert generate(whole, bundled.tokenizer(), ["import"]) == generate(whole, bundled.tokenizer(), ["import"])


def test_a_model_is_loaded_once_for_tasks_and_texts(
    bundled: prune.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    monkeypatch.setattr(module, "load", lambda model, **how: loaded.append(model) or prune.load(model, **how))
    questions: Any = {"data": str(write(tmp_path, ["Law"], count=2)), "subjects": "found"}
    found = prune.evaluate({"before": bundled, "after": bundled}, kmmlu=questions, shots=[0, 1], generate=["a"])
    assert loaded == [bundled]
    assert found["tasks"]["before"] == found["tasks"]["after"]
    assert list(found["tasks"]["after"]) == ["kmmlu", "kmmlu, 0-shot"]
    assert [own["shots"] for own in found["tasks"]["after"].values()] == [1, 0]


def test_a_recipe_records_what_is_the_same_on_every_run(tmp_path: Path) -> None:
    folder = write(tmp_path, ["Accounting", "math"], count=3)
    evaluate = {
        "kmmlu": {"data": str(folder), "subjects": "found"},
        "shots": 2,
        "generate": ["def f("],
        "tokens": 4,
        "perplexity": "python-docs",
        "samples": 2,
        "documents": "separate",
    }
    remove = {"what": "channels", "ratio": 0.5, "criterion": "magnitude"}
    recipe = {"model": "bundled", "steps": [{"remove": remove}, {"evaluate": evaluate}]}
    one, two = (apply(recipe, output=tmp_path / name).steps[1]["record"] for name in ("one", "two"))
    assert one == two
    assert set(one["tasks"]) == {"before", "after"}
    scored = one["tasks"]["after"]["kmmlu"]
    assert (scored["shots"], scored["questions"], set(scored["subjects"])) == (2, 6, {"Accounting", "Math"})
    assert set(one["generations"][0]) == {"prompt", "before", "after"}
    said = one["perplexity"]
    assert said["documents"] == "separate"
    terms = f"documents separate, length 256, stride 255, tokens {said['tokens']}"
    shown = [block for block in summary.blocks("out", apply(recipe, output=tmp_path / "one").steps, []) if block]
    assert f"perplexity of python-docs heldout, {terms}" in shown
    assert terms in (tmp_path / "one" / "README.md").read_text()
    assert one["flops"][0] > one["flops"][1] > 0
    first = files.manifest(tmp_path / "one")["key"]
    write(tmp_path, ["math"], count=4)
    with pytest.raises(PruneError, match="was made from another"):
        apply(recipe, output=tmp_path / "one")
    assert files.manifest(tmp_path / "one")["key"] == first


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"tasks": "kmmlu", "kmmlu": {"data": "nowhere/at/all"}}, "kmmlu: nowhere/at/all: no such folder"),
        ({"kmmlu": {"data": "."}}, "has no Accounting-test.csv, Agricultural-Sciences-test.csv"),
        ({"kmmlu": {"data": ".", "subjects": "found"}, "shots": 0}, "no subject is there"),
        ({"kmmlu": {"subjects": ["Maths"]}}, "unknown subject 'Maths'; did you mean 'Math'?"),
        ({"tasks": ["arc_easy"]}, 'pip install ".[eval]"'),
        ({"kmmlu": {"scorer": "lm-eval"}}, 'pip install ".[eval]"'),
        ({"kmmlu": {"data": "made-up", "subjects": "found"}, "shots": [0, 9]}, "Law has 5 solved questions, 9 shots"),
        ({"kmmlu": {"data": "made-up", "subjects": "found"}, "tasks": ["arc_easy"]}, ".[eval]"),
        ({"documents": "apart", "perplexity": "python-docs"}, "choices: joined, separate"),
    ],
)
def test_what_cannot_be_scored_is_known_before(
    options: dict[str, Any], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("prune.errors.find_spec", lambda _: None)
    (tmp_path / "made-up").mkdir()
    write(tmp_path / "made-up", ["Law"])
    with pytest.raises(PruneError) as caught:
        check({"model": "bundled", "output": "out", "steps": [{"evaluate": options}]})
    assert expected in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["made-up"]


def test_two_models_side_by_side_on_the_command_line(
    llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path, ["Law"], count=2)
    words = ["evaluate", "bundled", "--beside", "bundled", "--kmmlu", str(folder), "--subject", "found", "--shots", "1"]
    assert run([*words, "--generate", "def f(", "--tokens", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["before", "after"]
    assert any(line.startswith("kmmlu: 1-shot, 1 subjects and 2 questions of") for line in lines)
    assert any(line.split()[:2] == ["Law", "2"] for line in lines)
    assert any(line.startswith("def f(") for line in lines)
    assert run(["evaluate", str(llama_folder), "--batch", "2"]) == 2
    assert "--batch: is for --speed" in capsys.readouterr().err
