"""Which teachers a student may have: the ids that both must know, and what fits into memory."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import prune
from prune.errors import PruneError
from prune.model.model import Model
from prune.recovery import teacher as teachers
from prune.recovery.logits import Logits
from prune.recovery.settings import Optimizer, Training
from prune.recovery.teacher import refuse_too_large, shared_ids
from prune.recovery.weights import Lora
from tests.tiny import tiny_model, token_ids

TOKENS = prune.open("bundled").files  # of 4096 ids


def speaking(ids: int, *, files: dict[str, Path] = TOKENS, like: Model | None = None) -> Model:
    """A tiny model of so many ids with a tokenizer; as another says it where both have the id, and loud where not."""
    module = tiny_model("llama", vocab_size=ids, num_hidden_layers=1)
    if like is not None:
        values = {name: like.tensors.read(name) for name in like.tensors.info}
        wide = {n: torch.cat([v, 3 * torch.ones(ids - len(v), 48)]) if len(v) == 4096 else v for n, v in values.items()}
        module.load_state_dict(wide)
    return replace(prune.open(module), files=files)


def test_ids_that_only_pad_a_vocabulary_are_not_compared() -> None:
    student = speaking(4096)
    teacher = speaking(4104, like=student)
    assert shared_ids(student, teacher) == shared_ids(teacher, student) == 4096
    ids = token_ids(4, 8, vocabulary=4096)
    rows = [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}]
    still = Training(steps=1, batch_size=4, optimizer=Optimizer(weight_decay=0.0))
    options: dict[str, Any] = {"held_out": rows, "training": still, "logits": Logits(alpha=1.0)}
    for small, large in ((student, teacher), (teacher, student)):
        curve = prune.distill(small, rows, teacher=large, **options).record["curve"]
        assert curve[1]["loss"] == pytest.approx(0, abs=1e-5)


def test_tokens_with_other_ids_are_refused_and_counted(tmp_path: Path) -> None:
    files = {name: Path(shutil.copy(path, tmp_path)) for name, path in TOKENS.items()}
    content = json.loads(files["tokenizer.json"].read_bytes())
    vocabulary = content["model"]["vocab"]
    a, b = list(vocabulary)[300:302]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    files["tokenizer.json"].write_text(json.dumps(content))
    other = speaking(4096, files=files)
    with pytest.raises(PruneError, match="teacher: .* have different vocabularies: 2 of the student's 4096 tokens"):
        shared_ids(speaking(4096), other)


def test_tokens_that_a_model_does_not_know_are_refused() -> None:
    with pytest.raises(PruneError, match="teacher: the tokenizer has ids beyond the 4000 that both models know"):
        shared_ids(speaking(4096), speaking(4000))


def test_without_tokenizers_the_sizes_must_be_one() -> None:
    nothing: dict[str, Path] = {}
    with pytest.raises(PruneError, match="teacher: the student has 96 token ids, the teacher 90, and no tokenizer"):
        shared_ids(speaking(96, files=nothing), speaking(90, files=nothing))


def sized(billions: float) -> Any:
    return SimpleNamespace(tensors=SimpleNamespace(parameters=int(billions * 1e9)))


def test_a_teacher_that_does_not_fit_is_refused_with_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teachers, "available", lambda _: int(40e9))
    training = Training(steps=1)
    expected = r"too large: the teacher takes 28\.0 GB and training the student 16\.0 GB, 40\.0 GB are free; `cache`"
    with pytest.raises(PruneError, match=expected):
        refuse_too_large(sized(7), sized(1), training)
    refuse_too_large(sized(7), sized(1), replace(training, autocast=torch.bfloat16))
    refuse_too_large(sized(7), sized(1), replace(training, weights=Lora()))


@pytest.mark.parametrize(
    ("device", "count", "here", "sharded", "launcher", "most"),
    [
        ("cuda", 1, 1, True, "true", 44.0),
        ("cuda", 4, 4, False, "false", 44.0),
        ("cuda", 4, 4, True, "", 11.0),
        ("cuda", 4, 2, False, "true", 11.0),
        ("cpu", 4, 4, False, "", 176.0),
        ("cpu", 4, 2, False, "", 88.0),
        ("cpu", 4, 4, True, "", 128.0),  # each loads all of it first
    ],
)
def test_what_fits_is_told_by_the_processes_that_will_take_part(
    device: str, count: int, here: int, sharded: bool, launcher: str, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gigabytes that are enough, of a GPU or of the machine, for 28 of a teacher and 16 of a student."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", launcher)
    training = Training(steps=1, device=device, sharded=sharded, processes=count, local=here)
    monkeypatch.setattr(teachers, "available", lambda _: most * 1e9 + 1)
    refuse_too_large(sized(7), sized(1), training)
    monkeypatch.setattr(teachers, "available", lambda _: most * 1e9 - 1e6)
    with pytest.raises(PruneError, match="too large: the teacher takes 28.0 GB and training the student 16.0 GB"):
        refuse_too_large(sized(7), sized(1), training)


def test_distilling_looks_before_it_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teachers, "available", lambda _: 1000)
    monkeypatch.setattr("prune.recovery.recover.load", None)
    model = speaking(96)
    with pytest.raises(PruneError, match="teacher: too large"):
        prune.distill(model, [], teacher=model, held_out=[], training=Training(steps=1))
