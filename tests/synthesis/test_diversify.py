"""The grid's emptiest cells are filled first; operations are drawn by their weights; what was asked for is reported."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

import prune
from prune.synthesis import languages
from prune.synthesis.diversify import Grid, drafts, lines
from prune.synthesis.evolve import draw, evolve, written
from prune.synthesis.items import Item
from prune.synthesis.settings import WEIGHTS, Diversify
from tests.synthesis.script import matcher, text

KNOWN = languages.load()


def grid(cells: dict[tuple[str, str], int]) -> Grid:
    made = Grid(known=[language.difficulties for language in KNOWN.values()])
    for (skill, difficulty), count in cells.items():
        for number in range(count):
            name = f"{skill}-{difficulty}-{number}"
            made.add(Item(name, name, skill, difficulty, f"Do {name}"), seed=0)
    return made


def test_emptiest_cells_come_first_until_all_are_level() -> None:
    cells = {("maths", "easy"): 4, ("maths", "hard"): 1, ("code", "easy"): 2}
    wanted = Diversify(items=10, topics=2, subtopics=2)
    asked: list[str] = []

    def ask(prompts: list[tuple[str, int]]) -> list[str]:
        asked.extend(prompt for prompt, _ in prompts)
        return ["1. first thing\n- second thing\nthird thing" for _ in prompts]

    made = list(drafts(grid(cells), wanted, seed=0, ask=ask, language_of=lambda _: KNOWN["en"]))  # type: ignore[arg-type]
    after = Counter(cells)
    for draft in made:
        cell = (draft.item.skill, draft.item.difficulty)
        everywhere = [after[skill, each] for skill in ("maths", "code") for each in ("easy", "hard")]
        assert after[cell] == min(everywhere)
        after[cell] += 1
    assert set(after.values()) <= {4, 5}
    assert len(asked) == 2 + 4, "topics of each skill, then subtopics of each topic"
    english = KNOWN["en"]
    for draft in made:
        assert draft.item.topic in {
            f"{one} thing: {other} thing" for one in ("first", "second") for other in ("first", "second")
        }
        found = matcher(english.prompts["write"]).fullmatch(draft.prompt or "")
        assert found and found["kind"] == english.kinds[draft.item.kind or ""]["asks"]
        assert found["format"] == english.formats[draft.item.format or ""]
        assert draft.item.format in english.kinds[draft.item.kind or ""]["formats"]
        assert found["example"].startswith(f"Do {draft.item.skill}")


def test_given_skills_kinds_and_formats_are_kept_to() -> None:
    wanted = Diversify(
        items=12, subtopics=0, skills=["law"], difficulties=["1", "2"], kinds=["maths"], formats=["json"]
    )
    made = list(
        drafts(grid({("code", "1"): 1}), wanted, seed=0, ask=lambda p: [""] * len(p), language_of=lambda _: KNOWN["en"])
    )
    assert {(d.item.skill, d.item.kind, d.item.format, d.item.topic) for d in made} == {("law", "maths", "json", "law")}
    assert Counter(d.item.difficulty for d in made) == {"1": 6, "2": 6}


def test_each_language_takes_the_kinds_that_it_has_of_those_asked_for() -> None:
    wanted = Diversify(items=30, topics=1, subtopics=0, kinds=["글쓰기", "writing", "code"], formats=["json", "문단"])
    own = {"a": KNOWN["en"], "b": KNOWN["ko"]}
    made = drafts(
        grid({("a", "1"): 1, ("b", "1"): 1}), wanted, seed=0, ask=lambda p: ["물"] * len(p),
        language_of=lambda item: own[item.skill],
    )  # fmt: skip
    drawn = {(draft.item.skill, draft.item.kind, draft.item.format) for draft in made}
    assert drawn == {("a", "writing", "json"), ("a", "code", "json"), ("b", "글쓰기", "문단")}


def test_lists_are_read_without_their_bullets_and_doubles() -> None:
    reply = '1. Rivers\n2) Lakes\n- "Seas"\n* Rivers\n\n• Ponds.\nx\n' + "z" * 200
    assert lines(reply, 9) == ["Rivers", "Lakes", "Seas", "Ponds"]
    assert lines(reply, 2) == ["Rivers", "Lakes"]


def test_operations_are_drawn_by_their_weights() -> None:
    weights = {"deepen": 3.0, "breadth": 1.0, "reason": 0.0}
    drawn = Counter(draw(weights, 0, "operation", 1, slot) for slot in range(4000))
    assert drawn["reason"] == 0
    assert drawn["deepen"] / 4000 == pytest.approx(0.75, abs=0.03)
    assert [draw(weights, 0, 1, n) for n in range(50)] == [draw(weights, 0, 1, n) for n in range(50)]
    assert [draw(weights, 1, 1, n) for n in range(50)] != [draw(weights, 0, 1, n) for n in range(50)]


def test_depth_goes_one_step_up_the_scale_and_breadth_stays() -> None:
    numbers = grid({("a", "10"): 1, ("a", "2"): 1})
    assert numbers.scale() == ["2", "10"]
    assert grid({("a", "hard"): 1, ("a", "easy"): 1}).scale(["easy"]) == ["easy", "hard"]
    parent = Item("seed-0", "seed-0", "a", "2", "Do it", topic="sums", kind="maths", format="json")
    for slot in range(20):
        made = evolve(
            parent, round=1, slot=slot, weights=WEIGHTS, seed=0, language=KNOWN["en"], harder=numbers.harder()
        ).item
        breadth = made.operations == ("breadth",)
        assert made.difficulty == ("2" if breadth else "10")
        labels = (made.topic, made.kind, made.format)
        assert labels == ((None,) * 3 if breadth else ("sums", "maths", "json")), "something else has labels of its own"


@pytest.mark.parametrize(
    ("met", "given", "scale", "harder"),
    [
        ("hard easy medium", "", "easy medium hard", {"easy": "medium", "medium": "hard"}),
        ("어려움 쉬움 보통", "", "쉬움 보통 어려움", {"쉬움": "보통", "보통": "어려움"}),
        ("Hard Easy simple any", "", "Easy simple Hard any", {"Easy": "Hard", "simple": "Hard"}),
        ("10 any 9", "", "9 10 any", {"9": "10"}),
        ("hard 쉬움", "", "쉬움 hard", {}),
        ("dan kyu", "", "dan kyu", {}),
        ("dan kyu", "kyu dan", "kyu dan", {"kyu": "dan"}),
        ("hard easy", "hard easy", "hard easy", {"hard": "easy"}),
    ],
)
def test_difficulty_never_goes_down_by_the_order_of_the_seeds(
    met: str, given: str, scale: str, harder: dict[str, str]
) -> None:
    made = grid({("a", each): 1 for each in met.split()})
    assert made.scale(given.split()) == scale.split()
    assert made.harder(given.split()) == harder


def test_difficulties_can_be_named_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "seeds.json").write_text(json.dumps([{"difficulty": "kyu", "instruction": text("en", 0)}]))
    options = {"rounds": 1, "operations": {"deepen": 1.0}, "difficulties": ["kyu", "dan"], "diversify": {"items": 1}}
    found = prune.synthesize(
        tmp_path / "out", seeds=tmp_path / "seeds.json", writer=lambda p: text("en", p, count=20), **options
    )
    assert (found["coverage"]["difficulties"], found["coverage"]["kept"]) == (["kyu", "dan"], [[1, 3]])


@pytest.mark.parametrize(
    "reply",
    [
        "<instruction>Do it.</instruction>",
        "Sure!\n<instruction>\nDo it.\n</instruction> Done.",
        "<instruction>Do it.",
        "Do it.</instruction>",
        '"Do it."',
        "  Do it.\n",
    ],
)
def test_an_instruction_is_told_from_what_surrounds_it(reply: str) -> None:
    assert written(reply, KNOWN["en"].prompts["deepen"]) == "Do it."


def test_what_is_filled_in_is_not_filled_again() -> None:
    assert languages.fill("{parent} or {instruction}", parent="{instruction}", instruction="b") == "{instruction} or b"


def test_coverage_is_reported(tmp_path: Path) -> None:
    rows = [
        {"skill": "code", "difficulty": "easy", "instruction": text("en", 0)},
        {"skill": "law", "difficulty": "hard", "instruction": text("en", 1)},
    ]
    (tmp_path / "seeds.json").write_text(json.dumps(rows))
    found = prune.synthesize(
        tmp_path / "out",
        seeds=tmp_path / "seeds.json",
        writer=lambda p: text("en", p),
        rounds=0,
        diversify={"items": 2},
    )
    coverage = found["coverage"]
    assert (coverage["skills"], coverage["difficulties"]) == (["code", "law"], ["easy", "hard"])
    assert coverage["seeds"] == [[1, 0], [0, 1]] and coverage["kept"] == [[1, 1], [1, 1]]
    assert coverage["filled"] == [0.5, 1.0]
    assert sum(coverage["kinds"].values()) == sum(coverage["formats"].values()) == 2
