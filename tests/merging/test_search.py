"""Searching: it finds a known optimum, never does worse than its start, and goes on where it was stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prune.document import Document
from prune.errors import PruneError
from prune.merging.search import search, space, started


def bowl(vector: list[float]) -> float:
    return sum((number - wanted) ** 2 for number, wanted in zip(vector, (0.2, 0.9), strict=False))


@pytest.mark.parametrize("count", [1, 2])
def test_it_finds_the_least(count: int) -> None:
    found = search([0.5] * count, bowl, budget=120, seed=0)
    assert found.value < 1e-3 and len(found.candidates) == 120
    assert found.candidates[0]["parameters"] == [0.5] * count
    assert found.value == min(entry["value"] for entry in found.candidates)


def test_a_search_that_was_stopped_goes_on_with_the_same_candidates(tmp_path: Path) -> None:
    whole = search([0.5, 0.5], bowl, budget=40, seed=3)
    calls: list[list[float]] = []

    def stopped(vector: list[float]) -> float:
        if len(calls) == 17:
            raise KeyboardInterrupt
        calls.append(vector)
        return bowl(vector)

    log = tmp_path / "candidates.jsonl"
    with pytest.raises(KeyboardInterrupt):
        search([0.5, 0.5], stopped, budget=40, seed=3, log=log)
    assert len(log.read_text().splitlines()) == 17
    with log.open("a") as file:
        file.write('{"number": 17, "par')  # a line that a kill cut off
    calls.clear()
    later = search([0.5, 0.5], lambda vector: calls.append(vector) or bowl(vector), budget=40, seed=3, log=log)
    assert later == whole and len(calls) == 40 - 17
    assert [json.loads(line) for line in log.read_text().splitlines()] == whole.candidates


@pytest.mark.parametrize("count", [1, 2])
def test_candidates_that_cannot_be_merged_are_the_worst_and_not_the_end(tmp_path: Path, count: int) -> None:
    """The least lies where weights are zero."""
    calls: list[list[float]] = []
    log = tmp_path / "candidates.jsonl"

    def measure(vector: list[float]) -> float:
        calls.append(vector)
        if not all(vector):
            raise PruneError("a weight is zero")
        return float("nan") if min(vector) > 0.9 else sum(vector)

    found = search([0.5] * count, measure, budget=150, seed=0, log=log)
    failed = [entry for entry in found.candidates if entry["value"] is None]
    assert len(found.candidates) == 150 and 0 < found.value < 0.05
    assert any(entry["reason"] == "a weight is zero" for entry in failed)
    kept = log.read_text().splitlines()
    last = failed[-1]["number"]
    log.write_text("".join(f"{line}\n" for line in kept[: last + 1]))
    calls.clear()
    assert search([0.5] * count, measure, budget=150, seed=0, log=log) == found
    assert len(calls) == 150 - last - 1 and log.read_text().splitlines() == kept


def test_a_start_that_cannot_be_merged_is_refused(tmp_path: Path) -> None:
    def measure(_: list[float]) -> float:
        raise PruneError("does not merge")

    with pytest.raises(PruneError, match="does not merge"):
        search([0.5], measure, budget=3, seed=0, log=tmp_path / "candidates.jsonl")
    assert not (tmp_path / "candidates.jsonl").exists()


def document(**keys: object) -> Document:
    return Document("c", {"merge_method": "ties", "base_model": "base", "models": [{"model": "base"}, *MODELS], **keys})


MODELS = [{"model": "a", "parameters": {"density": 0.5}}, {"model": "b"}]


def test_weights_go_to_every_model_but_the_base() -> None:
    found = space(document(), weights=2, layers=0, depth=4)
    assert len(found.start()) == 4
    made = found.config([0.1, 0.2, 0.3, 0.4]).value["models"]
    assert made[0] == {"model": "base"}
    assert made[1]["parameters"] == {"density": 0.5, "weight": [0.1, 0.2]}
    assert made[2]["parameters"] == {"weight": [0.3, 0.4]}
    assert MODELS[1] == {"model": "b"}  # the config itself is as it was
    assert found.path([0.1, 0.2, 0.3, 0.4]) is None


def test_slerp_is_searched_by_its_t() -> None:
    found = space(document(merge_method="slerp", models=MODELS), weights=3, layers=0, depth=4)
    assert found.config([0.1, 0.2, 0.3]).value["parameters"] == {"t": [0.1, 0.2, 0.3]}


def test_a_search_starts_from_the_configs_own_numbers() -> None:
    models = [{"model": "a", "parameters": {"weight": [0.1, "0.3"]}}, {"model": "b", "parameters": {"weight": 0.8}}]
    found = space(document(models=models), weights=3, layers=0, depth=4)
    assert found.start() == [0.1, 0.2, 0.3, 0.8, 0.8, 0.8] and found.bounds() == (0.0, 1.0)
    wide = space(document(parameters={"weight": 1.5}), weights=1, layers=0, depth=4)
    assert wide.start() == [1.5, 1.5] and wide.bounds() == (0.0, 1.5)
    filters = [{"filter": "mlp", "value": 0.2}, {"value": 0.4}]
    assert space(document(parameters={"weight": filters}), weights=1, layers=0, depth=4).start() == [0.5, 0.5]
    t = space(document(merge_method="slerp", parameters={"t": 0.2}), weights=2, layers=0, depth=4)
    assert t.start() == [0.2, 0.2]
    sources = {"sources": [{"model": "base"}, {"model": "a"}], "parameters": {"t": 0.7}}
    sliced = Document("c", {"merge_method": "slerp", "base_model": "base", "slices": [sources]})
    inner = space(sliced, weights=1, layers=0, depth=4)
    assert inner.start() == [0.7]
    made = inner.config([0.1]).value
    assert made["parameters"] == {"t": 0.1} and made["slices"][0]["parameters"] == {}


def test_weights_that_a_config_lacks_are_filled_in() -> None:
    made = started(document(), weights=1).value["models"]
    assert [own.get("parameters", {}).get("weight") for own in made] == [None, 0.5, 0.5]
    assert started(document(), weights=0) == document()


def test_candidates_go_as_far_as_the_bounds() -> None:
    found = search([1.5], lambda vector: abs(vector[0] - 1.9), budget=60, seed=0, bounds=(-0.5, 2.0))
    assert found.vector == pytest.approx([1.9], abs=0.05)


def test_paths_start_as_the_model_is_and_repeat_layers() -> None:
    found = space(document(), weights=0, layers=2, depth=3)
    assert found.path(found.start()) == [0, 1, 2]
    assert found.path([0.9, 0.1, 0.9, 0.1, 0.9, 0.9]) == [0, 2, 1, 2]
    assert found.path([0.0] * 6) == [0]
    assert found.config([0.5] * 6).value == found.document.value


def test_what_cannot_be_searched_is_refused() -> None:
    with pytest.raises(PruneError, match="has no weights to search"):
        space(document(merge_method="karcher"), weights=1, layers=0, depth=3)
    with pytest.raises(PruneError, match="nothing to search"):
        space(document(), weights=0, layers=0, depth=3)
