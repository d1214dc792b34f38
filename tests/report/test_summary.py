"""What is said of a result is true of the result."""

from __future__ import annotations

from typing import Any

from prune.report import summary
from prune.report.card import card
from prune.report.table import Table

REMOVE = {"word": "remove", "options": {}, "record": {"saved_as": "llama", "parameters": [16, 8], "bytes": [64, 32]}}
EVALUATE = {
    "word": "evaluate",
    "options": {"perplexity": "python-docs", "speed": True},
    "record": {"perplexity": {"data": "python-docs", "before": 5.0, "after": 5.0}},
}
TIMED = {"latency_seconds": [0.001, 0.001], "latency_ratio": 1.0}


def shown(steps: list[dict[str, Any]], timings: list[dict[str, Any]]) -> dict[str, tuple[str, ...]]:
    table = next(block for block in summary.blocks("out", steps, timings) if isinstance(block, Table))
    return {row[0]: row[1:] for row in table.rows}


def test_what_was_measured_before_the_model_changed_is_not_said_of_the_result() -> None:
    steps = [EVALUATE, REMOVE]
    rows = shown(steps, [TIMED, {}])
    assert rows["perplexity"] == ("5.00", "", "")
    assert rows["latency"] == ("1.0 ms", "", "")
    notes = summary.notes(steps)
    assert len(notes) == 2
    assert notes[0].startswith("step 1 measures perplexity before step 2 changes the model")
    assert summary.as_data("done", "out", steps, [TIMED, {}])["changes"]["perplexity"]["after"] is None


def test_what_the_last_evaluation_measured_is() -> None:
    steps = [EVALUATE, REMOVE, EVALUATE]
    assert shown(steps, [TIMED, {}, TIMED])["perplexity"] == ("5.00", "5.00", "+0.0 %")
    assert summary.notes(steps) == []


def test_the_card_says_so_too() -> None:
    manifest = {"model": {"source": "m"}, "versions": {}, "recipe": {"steps": []}, "steps": [EVALUATE, REMOVE]}
    text = card(manifest, model_type="llama", base_model=None, licence=None)
    assert "| perplexity | 5.00 |  |  |" in text
    assert "step 1 measures perplexity before step 2" in text
