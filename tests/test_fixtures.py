"""The same laws on real trained checkpoints, where they lie beside the project; skipped elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import prune

SAME = ["stories260K-llama", "stories260K-as-mistral", "stories260K-as-qwen2"]  # one model in three families
REAL = [*SAME, "pycode-llama-7M"]


def stories(model: prune.Model, folder: Path) -> list[dict[str, torch.Tensor]]:
    source = folder / "text" / "tinystories.jsonl"
    found: list[dict[str, torch.Tensor]] = prune.batches(str(source), model.tokenizer(), samples=8, length=128, seed=0)
    return found


@pytest.mark.parametrize("name", REAL)
def test_a_no_op_changes_no_logit(fixtures_folder: Path, tmp_path: Path, name: str) -> None:
    source = fixtures_folder / "models" / name
    model = prune.open(source)
    plan = {group.name: list(range(group.units)) for group in prune.groups(model, ["heads", "channels", "layers"])}
    prune.save(prune.cut(model, plan), tmp_path / "out")
    batch = stories(model, fixtures_folder)[0]
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (source, tmp_path / "out"))
    with torch.no_grad():
        assert torch.equal(before(**batch).logits, after(**batch).logits)


def test_equal_weights_give_equal_scores(fixtures_folder: Path) -> None:
    models = [prune.open(fixtures_folder / "models" / name) for name in SAME]
    data = stories(models[0], fixtures_folder)  # the tokenizers open a text in different ways
    found = [prune.score(m, prune.groups(m, ["channels", "heads"]), data, criterion="wanda") for m in models]
    for other in found[1:]:
        for name, scores in found[0].items():
            torch.testing.assert_close(other[name], scores, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ratio", [0.25, 0.5])
@pytest.mark.parametrize("name", REAL)
def test_masked_equals_sliced(fixtures_folder: Path, name: str, ratio: float) -> None:
    model = prune.open(fixtures_folder / "models" / name)
    groups = prune.groups(model, ["channels", "heads"])
    data = stories(model, fixtures_folder)
    plan = prune.choose(model, groups, prune.score(model, groups, data), ratio=ratio)
    assert prune.prove(model, plan, prune.cut(model, plan), data[0])["max_relative_difference"] < 1e-5
