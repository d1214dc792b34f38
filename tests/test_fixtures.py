"""The laws of pruning on real trained checkpoints, where they lie beside the project; skipped elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

import prune
from prune.model.groups import HALVES, groups, kinds
from prune.model.model import Model
from prune.model.walk import Batch, logits
from tests import zoo
from tests.laws import chosen, close, in_a_clean_process, killed, leave, mortal

SAME = ["stories260K-llama", "stories260K-as-mistral", "stories260K-as-qwen2"]  # one model in three families
NAMES = [*SAME, "stories260K-as-phi3", "stories260K-as-mixtral-upcycled4", "pycode-llama-7M"]
NAMES += ["gpt2-nano-sort", "ko-nsmc-bert-tiny", "vit-tiny-cifar10"]
EACH = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def opened(folder: Path, name: str) -> Model:
    return prune.open(folder / "models" / name)


def batch(model: Model) -> Batch:
    """Something for a model to read: two images, or two windows of any tokens with five of padding."""
    draw = torch.Generator().manual_seed(0)
    if model.family.model_type == "vit":
        return {"pixel_values": torch.randn(2, 3, 32, 32, generator=draw)}
    length = min(24, getattr(model.config, "max_position_embeddings", 24) - 5)  # room to generate five
    ids = torch.randint(0, model.config.vocab_size, (2, length), generator=draw)
    mask = torch.ones_like(ids)
    mask[1, slice(-5, None) if model.family.model_type == "bert" else slice(5)] = 0
    return {"input_ids": ids, "attention_mask": mask}


def said(model: Model) -> torch.Tensor:
    """What a model says of its batch, computed in float32."""
    return next(iter(logits(model, [batch(model)], dtype=torch.float32)))


def stories(model: prune.Model, folder: Path) -> list[dict[str, torch.Tensor]]:
    source = folder / "text" / "tinystories.jsonl"
    found: list[dict[str, torch.Tensor]] = prune.batches(str(source), model.tokenizer(), samples=8, length=128, seed=0)
    return found


def plans(model: Model, kind: str, ratio: float) -> list[dict[str, list[int]]]:
    """A plan that removes units of a kind at random; none where so small a share is less than half a unit."""
    plan = chosen(model, kind, ratio)
    return [plan] if any(len(plan[group.name]) < group.units for group in groups(model, kind)) else []


@EACH
def test_masked_equals_sliced(fixtures_folder: Path, name: str) -> None:
    model = opened(fixtures_folder, name)
    for kind in kinds(model):
        found = [plan for ratio in (0.25, 0.5) for plan in plans(model, kind, ratio)]
        assert found, kind
        for plan in found[:1]:  # tests/model/test_families.py looks at both
            prune.prove(model, plan, prune.cut(model, plan), batch(model))  # raises when it is not


@pytest.fixture(scope="module")
def reloaded(fixtures_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Path, dict[str, object]]:
    """Every checkpoint with nothing removed, and with a quarter and a half of each kind that has a stock form."""
    root = tmp_path_factory.mktemp("stock")
    for name in NAMES:
        model = opened(fixtures_folder, name)
        able = [kind for kind in kinds(model) if kind not in ("query_heads", *HALVES, *model.family.fixed)]
        for share in (0.0, 0.25, 0.5):
            small = prune.cut(model, chosen(model, able, share))
            assert small.uniform, name
            leave(small, root / name / f"{share}" / "small", batch(model))
    return in_a_clean_process(sorted(root.glob("*/*/small")))


@EACH
def test_stock_transformers_loads_a_uniform_cut_bit_for_bit(name: str, reloaded: dict[Path, dict[str, object]]) -> None:
    found = {path.parts[-2]: row for path, row in reloaded.items() if path.parts[-3] == name}
    assert set(found) == {"0.0", "0.25", "0.5"}
    for row in found.values():
        assert row["equal"] and row["clean"] and row.get("generates", True), row


@EACH
def test_a_no_op_changes_no_logit(fixtures_folder: Path, tmp_path: Path, name: str) -> None:
    model = opened(fixtures_folder, name)
    plan = {group.name: list(range(group.units)) for group in prune.groups(model, kinds(model))}
    prune.save(prune.cut(model, plan), tmp_path / "out")
    found, expected = (
        zoo.logits(prune.load(path), batch(model)) for path in (tmp_path / "out", fixtures_folder / "models" / name)
    )
    assert torch.equal(found, expected)


@EACH
def test_dead_units_cost_nothing(fixtures_folder: Path, name: str) -> None:
    model = opened(fixtures_folder, name)
    rounded = model.config.dtype == torch.bfloat16  # as are the norms' weights, once they are rescaled for the width
    for kind in mortal(model):
        for plan in plans(model, kind, 0.5):
            dead = killed(model, kind, plan)
            before, after = (said(some) for some in (dead, prune.cut(dead, plan)))
            mask = batch(model).get("attention_mask")
            if mask is not None and before.ndim == 3:
                before, after = before[mask.bool()], after[mask.bool()]
            width = 1e-2 if rounded else 1e-3
            assert close(after, before, width if kind == "width" else 1e-4), kind


def test_equal_weights_give_equal_scores(fixtures_folder: Path) -> None:
    models = [opened(fixtures_folder, name) for name in SAME]
    data = stories(models[0], fixtures_folder)  # the tokenizers open a text in different ways
    found = [prune.score(m, prune.groups(m, ["channels", "heads"]), data, criterion="wanda") for m in models]
    for other in found[1:]:
        for name, scores in found[0].items():
            torch.testing.assert_close(other[name], scores, rtol=1e-4, atol=1e-6)
