"""The memory of a writer: nothing answered is asked again, whatever became of the file's end."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from collections.abc import Sequence, Set
from pathlib import Path

import pytest

import prune
from prune.errors import PruneError
from prune.synthesis import languages
from prune.synthesis.answers import opened
from prune.synthesis.attempt import Job, attempt
from prune.synthesis.eliminate.similar import prepare
from prune.synthesis.evolve import Draft
from prune.synthesis.items import Item
from prune.synthesis.settings import Settings
from prune.synthesis.tally import Tally
from prune.synthesis.writers.function import function
from prune.synthesis.writers.writer import Reply, Request, Writer
from tests.synthesis.script import text


def ask(path: Path, prompts: Sequence[str], *, seed: int = 0) -> tuple[list[str], list[str]]:
    """What was replied, and what the writer was asked for it."""
    asked: list[str] = []

    def answer(prompt: str) -> str:
        asked.append(prompt)
        return f"answer to {prompt} \u2028 한국어 \ud800"

    requests = [Request(prompt, 5, 0.5, seed) for prompt in prompts]
    with opened(path, sqlite3.connect(":memory:", isolation_level=None), function(answer)) as answers:
        replies = dict(answers.ask(requests))
        assert answers.asked == len(asked)
    return [replies[place].text for place in range(len(prompts))], asked


def test_what_was_answered_is_not_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    first, asked = ask(path, ["a", "b", "a"])
    assert asked == ["a", "b"] and first[0] == first[2] != first[1]
    again, asked = ask(path, ["b", "c", "a"])
    assert asked == ["c"] and again[0] == first[1] and again[2] == first[0]
    assert ask(path, ["a"], seed=1)[1] == ["a"], "another seed is another request"


def test_a_file_cut_off_anywhere_loses_at_most_its_last_answers(tmp_path: Path) -> None:
    path, prompts = tmp_path / "answers.jsonl", [f"prompt {n}" for n in range(6)]
    whole, _ = ask(path, prompts)
    content = path.read_bytes()
    rng = random.Random(0)
    for place in [0, len(content) - 1, *(rng.randrange(len(content)) for _ in range(40))]:
        path.write_bytes(content[:place])
        lines = content[:place].count(b"\n")
        replies, asked = ask(path, prompts)
        assert asked == prompts[lines:] and replies == whole
        assert path.read_bytes() == content


def test_a_damaged_line_in_the_middle_is_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    whole, _ = ask(path, ["a", "b", "c"])
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], b"\x00\xff" + lines[1][2:], lines[2], b""]))
    assert ask(path, ["a", "b", "c"]) == (whole, ["b"])


def test_another_file_is_not_taken_for_answers(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my notes\n")
    with pytest.raises(PruneError, match="something other than answers"):
        ask(path, ["a"])
    assert path.read_text() == "my notes\n"
    for content in (json.dumps([{"instruction": "Add 2 and 3"}]), json.dumps({"key": "mine", "text": "x"}), "my notes"):
        path.write_text(content)  # without a newline at the end
        with pytest.raises(PruneError, match="something other than answers"):
            ask(path, ["a"])
        assert path.read_text() == content
    with pytest.raises(PruneError, match="cannot be written"):
        ask(tmp_path / "notes.txt" / "answers.jsonl", ["a"])


def test_a_named_file_serves_later_runs_with_other_settings(tmp_path: Path) -> None:
    seeds, log, asked = tmp_path / "seeds.json", tmp_path / "log.jsonl", []
    seeds.write_text(json.dumps([{"instruction": text("en", n)} for n in range(4)]))

    def writer(prompt: str) -> str:
        asked.append(prompt)
        return text("en", prompt)

    options = {"seeds": seeds, "writer": writer, "answers": str(log), "judge": False}
    prune.synthesize(tmp_path / "out", rounds=1, budget={"items": 6}, **options)
    before = len(asked)
    found = prune.synthesize(tmp_path / "out", rounds=1, budget={"items": 8}, overwrite=True, **options)
    assert (before, len(asked)) == (4 + 2 * 2, 4 + 2 * 4) and found["attempted"] == 8


def test_the_order_in_which_replies_come_leaves_no_trace(tmp_path: Path) -> None:
    seeds = tmp_path / "seeds.json"
    seeds.write_text(json.dumps([{"instruction": text("en", n % 9)} for n in range(12)]))
    made = []
    for step, grows in ((1, False), (-1, False), (1, True), (-1, True)):

        def answer(requests: Sequence[Request], wanted: Set[int], step: int = step):  # type: ignore[no-untyped-def]
            done: set[int] = set()
            while left := sorted(wanted - done):
                place = left[::step][0]
                done.add(place)
                prompt, seed = requests[place].prompt, requests[place].seed
                said = "MORE 2 3" if "SAME" in prompt else "Sorry." if seed % 5 == 4 else text("en", prompt)
                yield place, Reply(said, len(prompt), len(said))

        writer = Writer("w", "w", answer, prices=(0.1, 0.7), grows=grows)
        prune.synthesize(tmp_path / "out", seeds=seeds, writer=writer, rounds=3)
        made.append({each.name: each.read_bytes() for each in (tmp_path / "out").iterdir()})
        shutil.rmtree(tmp_path / "out")
    first = made[0]
    assert all({name for name in first if first[name] != other[name]} == {"timings.json"} for other in made[1:])
    assert {row["rule"] for row in map(json.loads, first["rejected.jsonl"].splitlines())} == {"similar", "pleads"}


def test_each_reply_is_looked_at_while_others_are_waited_for(tmp_path: Path) -> None:
    given = 0

    def answer(requests: Sequence[Request], wanted: frozenset[int]):  # type: ignore[no-untyped-def]
        nonlocal given
        for place in sorted(wanted):
            given += 1
            yield place, Reply(text("en", requests[place].prompt), 1, 1)

    known = languages.load()["en"]
    drafts = [Draft(Item(f"{n}", f"{n}", "s", "1", text("en", n)), known) for n in range(7)]
    kept = sqlite3.connect(":memory:", isolation_level=None)
    prepare(kept)
    table, writer = sqlite3.connect(":memory:", isolation_level=None), Writer("w", "w", answer)
    with opened(tmp_path / "answers.jsonl", table, writer) as answers:
        job = Job(Settings(), answers, kept, Tally(writer), lambda _: known)
        for number, _ in enumerate(attempt(drafts, job)):
            assert given == number + 1


def test_replies_in_any_order_find_their_places(tmp_path: Path) -> None:
    def backwards(requests: Sequence[Request], wanted: frozenset[int]):  # type: ignore[no-untyped-def]
        yield from ((place, Reply(requests[place].prompt.upper(), 1, 1)) for place in sorted(wanted, reverse=True))

    table = sqlite3.connect(":memory:", isolation_level=None)
    with opened(tmp_path / "answers.jsonl", table, Writer("w", "w", backwards)) as answers:
        replies = dict(answers.ask([Request(each, 1, 0, 0) for each in "abcab"]))
    assert [replies[place].text for place in range(5)] == list("ABCAB")
