"""KMMLU: which files are which subjects, what the model sees, how scores are averaged, and lm-eval's answers."""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

import prune
from prune.errors import PruneError
from prune.evaluation import harness, kmmlu, tasks
from prune.evaluation.choices import answer
from prune.evaluation.kmmlu import GROUPS, SUBJECTS, check, fingerprint, questions, read, summary
from tests.questions import rows, write

GOLDEN = Path(__file__).with_name("lm_eval.json")
NAMES = ["Accounting", "korean-history", "math"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path, NAMES)


def test_45_subjects_in_4_groups() -> None:
    assert {name: len(own) for name, own in GROUPS.items()} == {
        "STEM": 11,
        "Applied Science": 12,
        "HUMSS": 11,
        "Other": 11,
    }
    assert len(set(SUBJECTS)) == 45


def test_what_the_model_sees(folder: Path) -> None:
    (subject,) = read(folder, subjects=["Math"], shots=1)
    (solved, *_), asked = rows("math", 5, seed=1), rows("math", 6)[0]

    def shown(row: dict[str, Any]) -> str:
        return f"{row['question'].strip()}\nA. {row['A']}\nB. {row['B']}\nC. {row['C']}\nD. {row['D']}\n정답："

    question = questions(subject, 1)[0]
    assert question.context == f"{shown(solved)} {'ABCD'[solved['answer'] - 1]}\n\n{shown(asked)}"
    assert question.choices == (" A", " B", " C", " D")
    assert question.answer == asked["answer"] - 1
    assert questions(subject, 0)[0].context == shown(asked)


@pytest.mark.parametrize("name", ["Korean-History", "korean_history", "Korean History", "KOREAN-HISTORY"])
def test_subjects_and_files_however_they_are_written(tmp_path: Path, name: str) -> None:
    write(tmp_path, [name])
    assert [subject.name for subject in read(tmp_path, subjects="korean-history")] == ["Korean-History"]
    assert check(tmp_path, subjects=[name], shots=0) == ["Korean-History"]


def test_a_folder_like_the_hubs_own_repository(tmp_path: Path, folder: Path) -> None:
    whole = tmp_path / "repository"
    shutil.copytree(folder, whole / "data", ignore=shutil.ignore_patterns("repository"))
    assert read(whole, subjects="found") == read(folder, subjects="found")


def test_what_is_missing_is_named(folder: Path) -> None:
    with pytest.raises(PruneError, match=r"has no Agricultural-Sciences-dev.csv, .* and 80 more; name the subjects"):
        check(folder, subjects=None, shots=5)
    (folder / "math-dev.csv").unlink()
    with pytest.raises(PruneError, match="has no Math-dev.csv$"):
        check(folder, subjects=["math"], shots=5)
    assert check(folder, subjects=["math"], shots=0) == ["Math"]
    assert check(folder, subjects="found", shots=0) == ["Accounting", "Korean-History", "Math"]
    with pytest.raises(PruneError, match="subjects: unknown subject 'Maths'; did you mean 'Math'"):
        check(folder, subjects=["Maths"], shots=0)
    with pytest.raises(PruneError, match="Accounting has 5 solved questions, 6 shots were asked"):
        read(folder, subjects="accounting", shots=6)
    with pytest.raises(PruneError, match="no such folder; give one of CSV files, or a Hub dataset"):
        check(folder / "nowhere", subjects=None, shots=0)


def test_rows_that_are_no_questions_are_refused(folder: Path) -> None:
    (folder / "math-test.csv").write_text("question,answer,A,B,C,D\nwhat?,5,a,b,c,d\n")
    with pytest.raises(PruneError, match="question 1 has answer 5, not 1 to 4"):
        read(folder, subjects="math")
    (folder / "math-test.csv").write_text("question,answer,A,B,C\nwhat?,1,a,b,c\n")
    with pytest.raises(PruneError, match="question 1 has no column 'D'"):
        read(folder, subjects="math")


def test_from_the_hub(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    asked = []

    def load_dataset(*names: str, **options: Any) -> datasets.Dataset:
        asked.append((*names, options["split"], options["revision"]))
        return datasets.Dataset.from_list(rows(names[1].lower(), 6, seed=options["split"] == "dev"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert check("HAERAE-HUB/KMMLU", subjects=None, shots=5) == list(SUBJECTS)
    found = read("HAERAE-HUB/KMMLU@v1", subjects=["math"])
    assert asked == [("HAERAE-HUB/KMMLU", "Math", split, "v1") for split in ("dev", "test")]
    monkeypatch.undo()
    assert questions(found[0], 5) == questions(read(folder, subjects="math")[0], 5)


def test_without_a_network_it_is_one_line_that_says_what_needs_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def load_dataset(*_: str, **__: Any) -> None:
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
        raise ConnectionError("Couldn't reach it")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(PruneError, match="^HAERAE-HUB/KMMLU:Math: cannot be read: .*; a folder of its CSV files needs"):
        read("HAERAE-HUB/KMMLU", subjects=["math"])
    assert caplog.records == []


def test_fingerprints_are_of_the_files_asked_for(folder: Path) -> None:
    before = fingerprint(folder, ["Math"]), fingerprint(folder, ["Accounting"])
    write(folder, ["math"], count=7)
    assert fingerprint(folder, ["Math"]) != before[0]
    assert fingerprint(folder, ["Accounting"]) == before[1]
    assert fingerprint("owner/name", ["Math"]) == "owner/name@main"


def test_averages() -> None:
    subjects = [
        kmmlu.Subject(name, (), tuple({"answer": given} for given in answers))
        for name, answers in {"Math": (4, 4, 4, 1), "Biology": (2, 4), "Law": (4, 1, 2, 3)}.items()
    ]
    right = {"Math": [True, True, False, True], "Biology": [False, False], "Law": [True, False, False, False]}
    found = summary(right, subjects, shots=5)
    assert found["micro"] == 4 / 10
    assert found["macro"] == pytest.approx((3 / 4 + 0 + 1 / 4) / 3)
    assert found["error"] == pytest.approx((0.4 * 0.6 / 10) ** 0.5)
    assert (found["majority"], found["majority_answer"]) == (5 / 10, "D")
    assert found["groups"] == {
        "STEM": {"micro": 3 / 6, "macro": 3 / 8, "correct": 3, "questions": 6, "subjects": ["Biology", "Math"]},
        "HUMSS": {"micro": 1 / 4, "macro": 1 / 4, "correct": 1, "questions": 4, "subjects": ["Law"]},
    }
    assert found["subjects"]["Math"] == {"correct": 3, "questions": 4}


@pytest.mark.parametrize("shots", [0, 5])
def test_the_same_answers_as_lm_eval_gave(shots: int, tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text())
    model = prune.open("bundled")
    module, tokenizer = prune.load(model, dtype=torch.float32).eval(), model.tokenizer()
    for name, count, padding in golden["asked"]:
        write(tmp_path, [name], count=count, padding=padding)
        (subject,) = read(tmp_path, subjects=[name])
        found = answer(module, tokenizer, questions(subject, shots))
        theirs = golden["shots"][str(shots)][subject.name]
        assert [own.correct for own in found] == [own["acc"] == 1 for own in theirs]
        for own, other in zip(found, theirs, strict=True):
            assert list(own.logprobs) == pytest.approx(other["logprobs"], abs=1e-4)


def test_kmmlu_counts_every_question_of_every_subject(folder: Path) -> None:
    model = prune.open("bundled")
    found = kmmlu.kmmlu(prune.load(model).eval(), model.tokenizer(), read(folder, subjects="found", limit=4), shots=2)
    assert {name: own["questions"] for name, own in found["subjects"].items()} == dict.fromkeys(
        ("Accounting", "Korean-History", "Math"), 4
    )
    assert found["questions"] == 12
    assert found["shots"] == 2


def test_lm_eval_is_asked_for_by_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr("prune.errors.find_spec", lambda _: None)
    missing = r'needs lm-eval, which is not installed: pip install "\.\[eval\]"'
    with pytest.raises(PruneError, match=f"tasks: scoring these tasks {missing}"):
        harness.check(["arc_easy"])
    model: Any = None
    with pytest.raises(PruneError, match=f"kmmlu: this scorer {missing}"):
        harness.answered(model, model, read(folder, subjects="found"), shots=0)


def test_the_forecast_counts_questions_of_every_subject(folder: Path) -> None:
    local: Any = {"data": str(folder), "subjects": "found"}
    count = tasks.asked
    assert count(["kmmlu"], shots=0, limit=None, questions=None) == pytest.approx(35030, rel=0.001)
    assert count(["kmmlu"], shots=0, limit=4, questions=local) == 3 * 4
    assert count(["kmmlu"], shots=5, limit=4, questions=local) == 3 * (4 + 5), "the solved ones are read once"
    assert count(["kmmlu"], shots=[0, 5], limit=4, questions=local) == 3 * 4 + 3 * (4 + 5)
    assert count(["kmmlu"], shots=5, limit=4, questions={**local, "scorer": "lm-eval"}) == 3 * 4 * 4 * 6
    assert count(["arc_easy"], shots=5, limit=10, questions=None) == 10 * 6


def test_the_version_of_lm_eval_is_in_the_key_where_it_scores(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "version", lambda _: "7.8")
    local: Any = {"data": str(folder), "subjects": "found"}
    own = tasks.fingerprint(local)
    assert tasks.fingerprint({**local, "scorer": "own"}) == own
    assert tasks.fingerprint({**local, "scorer": "lm-eval"}) == ["lm-eval 7.8", own]


def test_tasks_written_for_lm_eval_hold_the_same_questions(tmp_path: Path, folder: Path) -> None:
    subjects = read(folder, subjects="found", shots=2)
    place = tmp_path / "tasks"
    place.mkdir()
    harness._write(place, subjects)
    task = json.loads((place / "kmmlu_korean_history.yaml").read_text())
    files = task["dataset_kwargs"]["data_files"]
    kept = {split: [json.loads(line) for line in Path(path).read_text().splitlines()] for split, path in files.items()}
    assert [row["question"] for row in kept["test"]] == [row["question"] for row in subjects[1].asked]
    assert len(kept["dev"]) == 2
    assert task["doc_to_text"].endswith("\nD. {{D}}\n정답：")


def test_the_real_files(fixtures_folder: Path) -> None:
    found = read(fixtures_folder / "kmmlu", subjects="found")
    assert len(found) == 15
    assert sum(len(subject.asked) for subject in found) == 7330
    assert all(len(subject.solved) == 5 for subject in found)
    given = Counter(int(row["answer"]) for subject in found for row in subject.asked)
    scored = summary({subject.name: [True] * len(subject.asked) for subject in found}, found, shots=5)
    assert scored["micro"] == scored["macro"] == 1
    assert scored["majority"] == max(given.values()) / 7330
