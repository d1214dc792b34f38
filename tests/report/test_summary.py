"""What is said of a result is true of the result."""

from __future__ import annotations

from typing import Any

from prune.report import course, evaluated, summary
from prune.report.blocks import Facts, Points, Rows
from prune.report.card import card
from prune.report.page import metrics
from prune.report.sections import speed, tasks
from prune.report.sections.result import Tile, tiles
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


def test_a_latency_whose_ratio_lies_on_both_sides_of_one_is_neither_gain_nor_cost() -> None:
    unsure, sure = [
        [
            {},
            {
                "latency_seconds": [1.6, 2.9],
                "latency_ratio": 1.3,
                "speed": {"prefill": {"before": 1.6, "after": 2.9, "ratio": 1.3, "spread": spread, "of": {"batch": 1}}},
            },
        ]
        for spread in ([0.6, 3.1], [1.2, 1.5])
    ]
    steps = [REMOVE, EVALUATE]
    assert [shown(steps, timed)["latency"][2] for timed in (unsure, sure)] == ["within noise", "+30.0 %"]
    found = [next(t for t in tiles(Facts({"steps": steps}, timed)) if t.name == "latency") for timed in (unsure, sure)]
    assert [(tile.change, tile.tone) for tile in found] == [("within noise", "plain"), ("+30.0 %", "cost")]


def test_so_it_is_with_the_rate_of_decoding() -> None:
    timings = [
        [{}, {"speed": {"decode": {"before": 80.0, "after": 70.0, "ratio": 0.9, "spread": spread, "of": {"batch": 1}}}}]
        for spread in ([0.7, 1.1], [0.8, 0.95])
    ]
    facts = [Facts({"steps": [REMOVE, EVALUATE]}, own) for own in timings]
    found = [next(tile for tile in tiles(own) if tile.name == "decoding") for own in facts]
    assert [(tile.change, tile.tone) for tile in found] == [("within noise", "plain"), ("\N{MINUS SIGN}10.0 %", "cost")]


def test_so_it_is_with_tasks() -> None:
    score = {"kmmlu": {"micro": 0.3, "shots": 5}}
    tested = {"word": "evaluate", "options": {}, "record": {"tasks": {"before": score, "after": score}}}
    assert summary.overtaken([tested, REMOVE])[0].startswith("step 1 measures the score of tasks before step 2 changes")
    assert summary.overtaken([REMOVE, tested]) == []
    named = [
        [tile.name for tile in tiles(Facts({"steps": steps}, []))] for steps in ([tested, REMOVE], [REMOVE, tested])
    ]
    assert ["KMMLU, points" in names for names in named] == [False, True]
    found = metrics(Facts({"steps": [tested, REMOVE]}, []))["tasks"]
    assert found == {"before": score, "after": None}


def test_so_it_is_with_speed_and_the_numbers_for_machines() -> None:
    rate = {"before": 80.0, "after": 120.0, "ratio": 1.5, "spread": [1.4, 1.6], "of": {"batch": 1}}
    late, early = ([REMOVE, EVALUATE], [{}, {"speed": {"decode": rate}}]), ([EVALUATE, REMOVE], [])
    early[1].extend([late[1][1], {}])
    facts = [Facts({"steps": steps}, timings) for steps, timings in (late, early)]
    assert ["decoding" in [tile.name for tile in tiles(own)] for own in facts] == [True, False]
    said = [speed.section(own) for own in facts]
    assert said[0] and said[1]
    assert [one.title for one in said if one] == ["Speed (step 2)", "Speed (step 1)"]
    warned = [
        [block for block in one.blocks if isinstance(block, Points) and block.tone == "warn"] for one in said if one
    ]
    assert warned[0] == [] and "before step 2 changed the model" in warned[1][0].lines[0]
    kept, gone = (metrics(own) for own in facts)
    assert kept["speed"]["decode"] == {"before": 80.0, "after": 120.0, "ratio": 1.5}
    assert gone["speed"]["decode"] == {"before": 80.0, "after": None, "ratio": None}
    assert (kept["perplexity"]["after"], gone["perplexity"]["after"]) == (5.0, None)


def test_a_change_within_the_standard_error_is_neither_gain_nor_cost() -> None:
    def tile(after: float) -> Tile:
        sides = {
            side: {"kmmlu": {"micro": micro, "error": 0.02}} for side, micro in (("before", 0.3), ("after", after))
        }
        step = {"word": "evaluate", "options": {}, "record": {"tasks": sides}}
        return next(one for one in tiles(Facts({"steps": [step]}, [])) if one.name.startswith("KMMLU"))

    assert [tile(after).tone for after in (0.25, 0.29, 0.31, 0.35)] == ["cost", "plain", "plain", "gain"]
    assert tile(0.35).change == "+5.0 ± 2.0"


def test_the_standard_error_of_kmmlu_is_shown() -> None:
    scores = {"shots": 5, "micro": 0.3, "macro": 0.3, "error": 0.0123, "majority": 0.3, "majority_answer": "B"}
    scores |= {"data": "x", "questions": 4, "groups": {}, "subjects": {"Law": {"correct": 1, "questions": 4}}}
    step = {"word": "evaluate", "options": {}, "record": {"tasks": {"before": {"kmmlu": scores}}}}
    shown = evaluated.tables(step["record"], ("before",))
    section = tasks.section(Facts({"steps": [step]}, []))
    assert section
    tables = [block for block in shown if isinstance(block, Table)]
    tables += [block.table for block in section.blocks if isinstance(block, Rows)]
    assert [row[2] for row in tables[0].rows if row[0] == "all, micro"] == ["30.0 ± 1.2 %"]
    assert any(row[:2] == ("micro", "30.0 ± 1.2 %") for table in tables for row in table.rows)


def test_what_the_last_evaluation_measured_is() -> None:
    steps = [EVALUATE, REMOVE, EVALUATE]
    assert shown(steps, [TIMED, {}, TIMED])["perplexity"] == ("5.00", "5.00", "+0.0 %")
    assert summary.notes(steps) == []


def test_the_card_says_so_too() -> None:
    manifest = {"model": {"source": "m"}, "versions": {}, "recipe": {"steps": []}, "steps": [EVALUATE, REMOVE]}
    text = card(manifest, model_type="llama", base_model=None, licence=None)
    assert "| perplexity | 5.00 |  |  |" in text
    assert "step 1 measures perplexity before step 2" in text


def test_perplexity_along_the_steps_is_a_table_once_more_was_measured_than_the_result() -> None:
    evaluated = {**EVALUATE, "record": {"perplexity": {"data": "python-docs", "before": 5.0, "after": 8.0}}}
    tuned = {"word": "distill", "options": {}, "record": {"saved_as": "llama"}}
    steps = [REMOVE, evaluated, tuned, EVALUATE]
    found = course.table(steps)
    assert found is not None
    assert found.rows == [
        ("original", "5.00", "100.0 %"),
        ("1 remove", "", "50.0 %"),
        ("2 evaluate", "8.00", "50.0 %"),
        ("3 distill", "", "50.0 %"),
        ("4 evaluate", "5.00", "50.0 %"),
    ]
    assert found in summary.blocks("out", steps, [{}] * 4)
    assert course.table([REMOVE, EVALUATE]) is None
    otherwise = {"data": "other", "before": 1.0, "after": 2.0}
    assert course.table([REMOVE, {**EVALUATE, "record": {"perplexity": otherwise}}, tuned, EVALUATE]) is None


EXPORT = {
    "format": "onnx",
    "dtype": "int8",
    "opset": 20,
    "files": {"model.onnx": 1500, "config.json": 500},
    "parity": {
        "tolerance": 1e-4,
        "max_difference": 3.14159e-7,
        "worst": "batch 1, length 9, unpadded",
        "points": 12,
        "greedy_tokens": [63, 64],
    },
    "perplexity_change": {
        "data": {"data": "python-docs", "split": "heldout"},
        "length": 256,
        "stride": 255,
        "tokens": 4096,
        "before": 7.11111,
        "after": 7.22222,
    },
    "ranges": [1, 2],
}


def test_an_export_is_told_in_words() -> None:
    shown = summary.exported(EXPORT, "out")
    assert isinstance(shown[0], Table) and shown[0].rows == [("model.onnx", "1.5 kB"), ("config.json", "500 B")]
    assert shown[1:] == [
        "written as: onnx, int8, opset 20",
        "difference from PyTorch: 3.1e-07 of the largest logit (allowed 0.0001), at batch 1, length 9, unpadded, "
        "the worst of 12 inputs",
        "choices: 63 of 64 greedy tokens are PyTorch's",
        "perplexity: 7.11 before, 7.22 after, on 4,096 tokens of python-docs heldout, windows of 256 tokens, "
        "stride 255",
        "ranges: 1, 2",
        "files: out",
    ]
