"""A budget stops a run before it is overdrawn, and what it paid for is whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import prune
from prune.errors import PruneError
from prune.synthesis.writers.writer import Reply, Request, Writer, estimated_tokens
from tests.synthesis.script import text


def writer(*, prices: tuple[float, float] = (0.0, 0.0)) -> Writer:
    """Says as many tokens as it may."""

    def answer(requests: list[Request], wanted: frozenset[int]):  # type: ignore[no-untyped-def]
        for place in sorted(wanted):
            prompt = requests[place].prompt
            yield (
                place,
                Reply(text("en", prompt, requests[place].seed), estimated_tokens(prompt), requests[place].tokens),
            )

    return Writer("w", "w", answer, prices)  # type: ignore[arg-type]


def run(folder: Path, budget: dict[str, Any], **options: Any) -> dict[str, Any]:
    seeds = folder / "seeds.json"
    seeds.write_text(json.dumps([{"instruction": text("en", n)} for n in range(10)]))
    sizes = {"instruction_tokens": 40, "answer_tokens": 60}
    made: dict[str, Any] = prune.synthesize(
        folder / "out", seeds=seeds, writer=writer(**options), rounds=5, budget=budget, **sizes
    )
    assert prune.verify(folder / "out") == []
    return made


@pytest.mark.parametrize("items", [1, 7, 10, 23])
def test_items_are_counted_exactly(items: int, tmp_path: Path) -> None:
    found = run(tmp_path, {"items": items})
    assert (found["attempted"], found["stopped"]) == (items, "items")


@pytest.mark.parametrize("tokens", [10, 400, 3000, 9000])
def test_tokens_are_never_overdrawn_and_nearly_used_up(tokens: int, tmp_path: Path) -> None:
    found = run(tmp_path, {"tokens": tokens})
    spent = found["spent"]["prompt_tokens"] + found["spent"]["tokens"]
    assert found["stopped"] == "tokens"
    assert spent <= tokens
    assert tokens - spent < 1000, "less than one item may take is left"


def test_money_is_counted_by_the_writers_prices(tmp_path: Path) -> None:
    found = run(tmp_path, {"money": 0.02}, prices=(1.0, 4.0))
    spent = found["spent"]
    assert found["stopped"] == "money"
    assert spent["money"] == pytest.approx((spent["prompt_tokens"] + 4 * spent["tokens"]) / 1e6, abs=1e-6)
    assert 0.015 < spent["money"] <= 0.02


def test_money_that_nothing_counts_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    with pytest.raises(PruneError, match=r"budget: money is counted by the writer's prices and it has none"):
        run(tmp_path, {"money": 1.0})
    assert [path.name for path in tmp_path.iterdir()] == ["seeds.json"]


def test_a_budget_that_is_not_reached_stops_nothing(tmp_path: Path) -> None:
    found = run(tmp_path, {"items": 1000, "tokens": 10**9})
    assert (found["attempted"], found["stopped"]) == (60, None)


def test_a_larger_budget_begins_with_the_same_items(tmp_path: Path) -> None:
    lines = []
    for items in (20, 45):
        (tmp_path / str(items)).mkdir()
        run(tmp_path / str(items), {"items": items})
        lines.append((tmp_path / str(items) / "out/data.jsonl").read_text().split("\n")[:-1])
    assert lines[1][: len(lines[0])] == lines[0] and len(lines[1]) > len(lines[0])
