"""What is kept of the scores is little, and true of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from prune import files
from prune.model.groups import Group
from prune.recipe import apply
from prune.remove.profile import BINS, TOTAL, profile


def made_up(layers: int, units: int) -> tuple[list[Group], dict[str, torch.Tensor]]:
    found = [Group(f"layers.{i}.channels", "channels", i, units) for i in range(layers)]
    generator = torch.Generator().manual_seed(0)
    return found, {group.name: torch.rand(units, generator=generator) for group in found}


def test_few_units_are_kept_one_by_one() -> None:
    groups, scores = made_up(2, 6)
    found = profile(groups, scores, {"layers.0.channels": [1, 4], "layers.1.channels": []})["channels"]
    assert (found["order"], found["layers"], found["units"]) == ("unit", [0, 1], [6, 6])
    assert found["mean"][0] == pytest.approx(scores["layers.0.channels"].tolist(), rel=1e-3)
    assert found["kept"] == [[0, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0]]


def test_many_units_are_sorted_and_binned_and_their_means_are_those_of_all() -> None:
    groups, scores = made_up(1, 640)
    (values,) = scores.values()
    lowest = values.argsort()[:160].tolist()
    kept = sorted(set(range(640)) - set(lowest))
    found = profile(groups, scores, {"layers.0.channels": kept})["channels"]
    (mean,), (share,) = found["mean"], found["kept"]
    assert (found["order"], len(mean)) == ("score", BINS)
    assert mean == sorted(mean)
    assert sum(mean) / BINS == pytest.approx(values.mean().item(), rel=1e-3)
    assert share == [0.0] * (BINS // 4) + [1.0] * (BINS - BINS // 4)


def test_a_group_that_the_plan_does_not_name_stays_whole() -> None:
    groups, scores = made_up(2, 4)
    assert profile(groups, scores, {"layers.0.channels": [0]})["channels"]["kept"][1] == [1, 1, 1, 1]


def test_a_deep_model_takes_no_more_room_than_a_shallow_one() -> None:
    groups, scores = made_up(256, 300)
    found = profile(groups, scores, {})["channels"]
    assert sum(map(len, found["mean"])) <= TOTAL


def test_the_step_leaves_them_with_the_shapes(llama_folder: Path, tmp_path: Path) -> None:
    remove = {"what": ["heads", "channels"], "ratio": 0.5, "criterion": "magnitude"}
    apply({"model": str(llama_folder), "output": str(tmp_path / "out"), "steps": [{"remove": remove}]})
    (step,) = files.manifest(tmp_path / "out")["steps"]
    assert set(step["record"]["scores"]) == {"heads", "channels"}
    before, after = step["record"]["shape"]
    assert (before["channels"], after["channels"]) == ([40, 40, 40], [20, 20, 20])
    for kind, scores in step["record"]["scores"].items():
        for layer, kept in zip(scores["layers"], scores["kept"], strict=True):
            assert sum(kept) == len(step["record"]["plan"][f"layers.{layer}.{kind}"])
    assert len(json.dumps(step["record"]["scores"])) < 10_000
