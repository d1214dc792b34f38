"""lm-eval beside our scorer, question by question: `tox -e peer-lmeval`. What it said is kept in
tests/evaluation/lm_eval.json, which an ordinary test compares with; PRUNE_WRITE_GOLDEN=1 writes it anew.

Of the real questions the first 4 of each subject are asked: PRUNE_QUESTIONS says how many, PRUNE_SUBJECTS of which
subjects (names with commas between), and `-rP` shows the largest difference."""

from __future__ import annotations

import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import prune
from prune.errors import PruneError
from prune.evaluation import harness
from prune.evaluation.choices import answer
from prune.evaluation.kmmlu import Subject, kmmlu, questions, read
from tests.evaluation.test_kmmlu import GOLDEN
from tests.questions import write

ASKED = [("Accounting", 8, ""), ("korean-history", 8, ""), ("Law", 4, "다음 글을 읽고 물음에 답하시오. " * 40)]


@pytest.fixture(scope="module")
def bundled() -> tuple[PreTrainedModel, Any]:
    model = prune.open("bundled")
    return prune.load(model, dtype=torch.float32).eval(), model.tokenizer()


def compare(module: PreTrainedModel, tokenizer: Any, subjects: list[Subject], shots: int) -> dict[str, Any]:
    """Both scorers on every question; gives lm-eval's answers."""
    theirs = harness.answered(module, tokenizer, subjects, shots=shots)
    for subject in subjects:
        ours = answer(module, tokenizer, questions(subject, shots))
        assert len(ours) == len(theirs[subject.name]) == len(subject.asked)
        worst = 0.0
        for own, other in zip(ours, theirs[subject.name], strict=True):
            assert list(own.logprobs) == pytest.approx(other["logprobs"], abs=1e-4)
            assert own.correct == (other["acc"] == 1)
            worst = max(worst, *(abs(a - b) for a, b in zip(own.logprobs, other["logprobs"], strict=True)))
        print(f"{subject.name}, {shots}-shot: {len(ours)} questions, largest difference {worst:.1e}")
    return theirs


@pytest.mark.parametrize("shots", [0, 5])
def test_every_made_up_question(bundled: tuple[PreTrainedModel, Any], tmp_path: Path, shots: int) -> None:
    for name, count, padding in ASKED:
        write(tmp_path, [name], count=count, padding=padding)
    found = compare(*bundled, read(tmp_path, subjects="found"), shots)
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("PRUNE_WRITE_GOLDEN"):
        golden |= {"lm_eval": version("lm_eval"), "model": "bundled", "asked": ASKED}
        golden["shots"] = golden.get("shots", {}) | {str(shots): found}
        GOLDEN.write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n")
    for name, own in golden["shots"][str(shots)].items():
        for one, other in zip(own, found[name], strict=True):
            assert one["logprobs"] == pytest.approx(other["logprobs"], abs=1e-4)


def test_a_model_whose_layers_differ(tmp_path: Path) -> None:
    model = prune.open("bundled")
    small = prune.cut(model, {"layers.0.heads": [0, 2], "layers.3.channels": list(range(300))})
    module = prune.load(small, dtype=torch.float32).eval()
    assert module.config.model_type == "prune_llama"
    compare(module, small.tokenizer(), read(write(tmp_path, ["Math"]), subjects="found"), 3)


def test_the_same_summary(bundled: tuple[PreTrainedModel, Any], tmp_path: Path) -> None:
    subjects = read(write(tmp_path, ["Math", "Law"]), subjects="found")
    assert harness.kmmlu(*bundled, subjects, shots=2) == kmmlu(*bundled, subjects, shots=2)


@pytest.mark.parametrize("name", ["stories260K-llama", "stories260K-as-mistral", "pycode-llama-7M"])
@pytest.mark.parametrize("shots", [0, 5])
def test_real_questions(fixtures_folder: Path, name: str, shots: int) -> None:
    model = prune.open(fixtures_folder / "models" / name)
    module = prune.load(model, dtype=torch.float32).eval()
    named = os.environ.get("PRUNE_SUBJECTS")
    limit = int(os.environ.get("PRUNE_QUESTIONS", "4"))
    subjects = read(fixtures_folder / "kmmlu", subjects=named.split(",") if named else "found", limit=limit)
    compare(module, model.tokenizer(), subjects, shots)


def test_names_that_lm_eval_does_not_know() -> None:
    with pytest.raises(PruneError, match="unknown task 'arc_esy'; did you mean 'arc_easy'"):
        harness.check(["arc_esy"])
    harness.check(["arc_easy", "kmmlu"])


def test_any_task_by_name(bundled: tuple[PreTrainedModel, Any]) -> None:
    """A task of lm-eval's own, its data put in place of the Hub's."""
    import datasets

    made = [
        {
            "id": str(n),
            "question": "What is it?",
            "choices": {"text": ["one", "two"], "label": ["A", "B"]},
            "answerKey": k,
        }
        for n, k in enumerate("ABBA")
    ]
    whole = datasets.DatasetDict(dict.fromkeys(("train", "validation", "test"), datasets.Dataset.from_list(made)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_dataset", lambda *_, **__: whole)
        found = harness.run(*bundled, ["arc_easy"], limit=3)
    assert set(found) == {"arc_easy"}
    assert {"acc", "acc_norm", "acc_stderr"} <= set(found["arc_easy"])
    assert found["arc_easy"]["questions"] == 3
    assert 0 <= found["arc_easy"]["acc"] <= 1


def test_lm_eval_opens_a_folder_whose_layers_differ(tmp_path: Path) -> None:
    """By its path, as `lm_eval --model_args pretrained=...` does, once prune is imported."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    small = prune.cut(prune.open("bundled"), {"layers.0.heads": [0, 2], "layers.3.channels": list(range(300))})
    folder = prune.save(small, tmp_path / "small")
    opened = HFLM(pretrained=str(folder), backend="causal", device="cpu", dtype="float32", batch_size=1)
    ((theirs, _),) = opened.loglikelihood([Instance("loglikelihood", {}, ("def main", "():\n    return"), 0)])
    tokenizer, module = small.tokenizer(), prune.load(small, dtype=torch.float32).eval()
    start, whole = (tokenizer.encode(text) for text in ("def main", "def main():\n    return"))
    with torch.no_grad():
        said = module(torch.tensor([whole])).logits[0].log_softmax(-1)
    ours = sum(float(said[at - 1, whole[at]]) for at in range(len(start), len(whole)))
    assert theirs == pytest.approx(ours, abs=1e-4)
