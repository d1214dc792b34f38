"""A scripted writer goes through every operation and every rule; the ledger tells of each what the script did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import prune
from prune.synthesis.items import RULES
from tests.synthesis.script import OPERATIONS, OUTCOMES, Script, text

SLOTS = 32


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


@pytest.mark.parametrize("language", ["en", "ko"])
def test_the_ledger_matches_the_script_item_by_item(language: str, tmp_path: Path) -> None:
    seeds = [
        {"skill": f"s{n % 3}", "difficulty": "easy", "instruction": text(language, "seed", n)} for n in range(SLOTS)
    ]
    # Each rule's turn comes once, and the answer's emptiness is a second way to be meaningless; all others are kept.
    outcomes = {seed["instruction"]: OUTCOMES[n] if n < len(OUTCOMES) else "kept" for n, seed in enumerate(seeds)}
    script = Script(language, lambda instruction: outcomes[instruction])
    (tmp_path / "seeds.jsonl").write_text("\n".join(json.dumps(seed) for seed in seeds), encoding="utf-8")
    found = prune.synthesize(tmp_path / "out", seeds=tmp_path / "seeds.jsonl", writer=script.writer(), rounds=1)

    kept, ledger = rows(tmp_path / "out/data.jsonl"), rows(tmp_path / "out/rejected.jsonl")
    operations = {instruction: operation for operation, instruction in script.asked}
    assert set(operations.values()) == set(OPERATIONS)
    rules = {"empty answer": "meaningless"}
    expected = [
        (f"1-{slot}", rules.get(outcome, outcome), operations[instruction])
        for slot, (instruction, outcome) in enumerate(outcomes.items())
    ]
    assert [(row["id"], row["rule"], row["lineage"]["operations"][-1]) for row in ledger] == [
        each for each in expected if each[1] != "kept"
    ]
    assert {row["rule"] for row in ledger} == set(RULES)
    assert [(row["id"], "kept", row["lineage"]["operations"][-1]) for row in kept if row["lineage"]["round"]] == [
        each for each in expected if each[1] == "kept"
    ]
    for row in (*kept, *ledger):
        slot = int(row["id"].split("-")[1])
        lineage = row["lineage"]
        assert row["language"] == language or row["rule"] == "meaningless"
        assert (lineage["seed"], lineage["parent"]) == (f"seed-{slot}", f"seed-{slot}" if lineage["round"] else None)
        assert lineage["writer"] == "Script"
    for row in ledger:
        assert lineage_stops_at(row, row["rule"], row["why"])
    for row in kept:
        verdicts = row["lineage"]["verdicts"]
        assert verdicts["same"] == ("more" if row["lineage"]["round"] else None)
        assert {verdicts[rule] for rule in RULES if rule != "same"} == {"passed"}
        assert row["lineage"]["ratings"] == ([3, 5] if row["lineage"]["round"] else None)
    assert found["rejected"] == dict.fromkeys(RULES, 1) | {"meaningless": 2}
    assert (found["attempted"], found["kept"]) == (2 * SLOTS, 2 * SLOTS - 8)


def lineage_stops_at(row: dict[str, Any], rule: str, why: str) -> bool:
    """The verdicts: passed up to the rule that eliminated it, its reason there, and nothing asked after."""
    verdicts = row["lineage"]["verdicts"]
    place = RULES.index(rule)
    answered = bool(row["messages"][1]["content"])
    before = RULES[:place] if not answered else [each for each in RULES[: RULES.index("pleads")] if each != rule]
    return verdicts[rule] == why and all(verdicts[each] in ("passed", "more") for each in before)


def test_rejected_instructions_go_back_to_the_pool_and_are_asked_differently(tmp_path: Path) -> None:
    seed = text("en", "seed")
    (tmp_path / "seeds.json").write_text(json.dumps([{"instruction": seed}]))
    turns = iter(["same", "leaked", "kept"])
    outcome: dict[str, str] = {}

    def plan(instruction: str) -> str:
        return outcome.get(instruction, "kept")

    script = Script("en", plan)

    def writer(prompt: str) -> str:
        if "<instruction>" in prompt:
            outcome[seed] = next(turns, "kept")
        return script(prompt)

    prune.synthesize(tmp_path / "out", seeds=tmp_path / "seeds.json", writer=writer, rounds=4)
    parents = [instruction for _, instruction in script.asked]
    evolved = text("en", "evolved", seed)
    assert parents == [seed, seed, seed, evolved]
    kept = rows(tmp_path / "out/data.jsonl")
    assert [(row["id"], row["lineage"]["parent"]) for row in kept] == [
        ("seed-0", None),
        ("3-0", "seed-0"),
        ("4-0", "3-0"),
    ]
    assert len(kept[-1]["lineage"]["operations"]) == 2  # what led to it, not what failed on the way


def test_two_languages_in_one_pool_get_their_own_prompts_and_rules(tmp_path: Path) -> None:
    scripts = {language: Script(language, lambda _: "pleads") for language in ("en", "ko")}
    seeds = [{"instruction": text(language, "seed", n)} for n in range(3) for language in ("en", "ko")]
    (tmp_path / "seeds.json").write_text(json.dumps(seeds), encoding="utf-8")

    def writer(prompt: str) -> str:
        return scripts["ko" if any("가" <= letter <= "힣" for letter in prompt) else "en"](prompt)

    prune.synthesize(tmp_path / "out", seeds=tmp_path / "seeds.json", writer=writer, rounds=1)
    ledger = rows(tmp_path / "out/rejected.jsonl")
    assert [(row["language"], row["rule"]) for row in ledger] == [("en", "pleads"), ("ko", "pleads")] * 3
    assert all(len(script.asked) == 3 for script in scripts.values())


def test_what_leaks_is_looked_for_in_the_language_that_was_written(tmp_path: Path) -> None:
    (tmp_path / "seeds.json").write_text(json.dumps([{"instruction": text("ko", "seed")}]), encoding="utf-8")
    leak = "Here is the new instruction: name three rivers of Europe."

    def writer(prompt: str) -> str:
        return f"<지시문>{leak}</지시문>" if "<지시문>" in prompt else text("ko", prompt)

    found = prune.synthesize(tmp_path / "out", seeds=tmp_path / "seeds.json", writer=writer, rounds=1)
    assert found["rejected"] == {"leaked": 1}
