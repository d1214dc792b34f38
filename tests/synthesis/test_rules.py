"""Each rule on texts that it eliminates and on near ones that it leaves, in English and in Korean."""

from __future__ import annotations

import random
import sqlite3

import pytest

from prune.synthesis import languages
from prune.synthesis.eliminate.copied import copied
from prune.synthesis.eliminate.cut import cut
from prune.synthesis.eliminate.leaked import leaked
from prune.synthesis.eliminate.meaningless import meaningless
from prune.synthesis.eliminate.pleads import pleads
from prune.synthesis.eliminate.same import ratings, same, verdict
from prune.synthesis.eliminate.similar import add, near, prepare, similar
from prune.synthesis.words import overlap, shingles, spoken
from tests.synthesis.script import text

KNOWN = languages.load()
EN, KO = KNOWN["en"], KNOWN["ko"]
LONG_EN = "The harbour wall holds because its stones lean on one another. " * 9
LONG_KO = " ".join(f"{number}번째 돌은 옆의 돌에 기대어 선다." for number in range(20))


@pytest.mark.parametrize("language", [EN, KO], ids=lambda language: language.name)
def test_a_truncated_reply_without_its_closing_tag_is_cut(language: languages.Language) -> None:
    name = {"en": "instruction", "ko": "지시문"}[language.name]
    for template in (language.prompts["deepen"], language.prompts["write"]):
        assert cut(f"<{name}>List three", template=template)
        assert cut("List three", template=template)
        assert cut(f"<{name}>List three rivers.</{name}> And so", template=template) is None


@pytest.mark.parametrize(
    ("language", "text"),
    [
        (EN, "#Rewritten Prompt#: List three rivers."),
        (EN, "Here is the rewritten instruction: list three rivers."),
        (EN, "<instruction>List three rivers."),
        (KO, "다시 쓴 지시문: 강 세 개를 말하세요."),
        (KO, "주어진 프롬프트를 바꾸면 강 세 개를 말하라는 것입니다."),
    ],
)
def test_phrases_of_prompts_leak(language: languages.Language, text: str) -> None:
    assert leaked(text, parent="", template="", language=language)
    assert not leaked(text, parent=text, template="", language=language), "what is asked about prompts is no leak"


@pytest.mark.parametrize(
    ("language", "text"),
    [
        (EN, "Remind the members to renew promptly."),
        (EN, "A clerk is given instructions by phone; write them down."),
        (KO, "아주새 프롬프트"),
    ],
)
def test_parts_of_words_do_not_leak(language: languages.Language, text: str) -> None:
    assert leaked(text, parent="", template="", language=language) is None


@pytest.mark.parametrize("language", [EN, KO], ids=lambda language: language.name)
@pytest.mark.parametrize("name", ["constrain", "deepen", "concretise", "reason", "complicate", "breadth", "write"])
def test_each_templates_own_words_leak(language: languages.Language, name: str) -> None:
    template = language.prompts[name]
    words = template.split("\n")[0].split()
    text = " ".join(words[: language.run + 3])
    assert leaked(text, parent="", template=template, language=language)
    assert not leaked("List three rivers. 강 세 개를 말하세요.", parent="", template=template, language=language)


@pytest.mark.parametrize(
    ("language", "text"),
    [
        (EN, ""),
        (EN, "...!? --- ***"),
        (EN, "And so it was, of the then."),
        (EN, "yes no " * 30),
        (EN, "_cache" * 40),
        (KO, "。、！？"),
        (KO, "그리고 그것 또 그"),
        (KO, "아니 글쎄 " * 30),
    ],
)
def test_meaningless(language: languages.Language, text: str) -> None:
    said = meaningless(text, language=language)
    assert said


@pytest.mark.parametrize(
    ("language", "text"),
    [
        (EN, "42"),
        (EN, "Yes: granite."),
        (EN, LONG_EN[:60]),
        (KO, "서울"),
        (KO, LONG_KO),
        (EN, "| a | b |\n| --- | --- |\n| 1 | 2 |"),
    ],
)
def test_short_answers_mean_something(language: languages.Language, text: str) -> None:
    assert meaningless(text, language=language) is None


@pytest.mark.parametrize(
    ("language", "text"),
    [
        (EN, "I'm sorry, but that is too hard for me."),
        (EN, "SORRY, no."),
        (EN, "As an AI, I have no opinion."),
        (KO, "죄송합니다. 너무 어려워서 답변할 수 없습니다."),
        (KO, "언어 모델로서 알지 못합니다."),
    ],
)
def test_short_pleas_are_told_from_long_answers_that_apologise(language: languages.Language, text: str) -> None:
    assert pleads(text, language=language)
    filler = LONG_EN if language is EN else LONG_KO
    assert pleads(f"{text} {filler}", language=language) is None
    assert pleads(filler[:100], language=language) is None


@pytest.mark.parametrize(
    ("language", "text"),
    [
        (EN, "The Hindenburg was an airship."),
        (EN, "It is as an aircraft carrier that it is known."),
        (EN, "Wi-Fi cannot pass walls of steel."),
        (KO, "주인공의 이름은 다미안입니다."),
    ],
)
def test_parts_of_words_are_no_pleas(language: languages.Language, text: str) -> None:
    assert pleads(text, language=language) is None


@pytest.mark.parametrize("text", ["sorry합니다", "미안하지만 어렵습니다.", "언어 모델로서는 모릅니다."])
def test_what_korean_hangs_on_a_word_hides_no_plea(text: str) -> None:
    assert pleads(text, language=KO)


@pytest.mark.parametrize(
    ("language", "answers"),
    [(EN, "Yes|No|yes.|No!"), (KO, "예|아니오|네|아니요|예.|아니오!|있습니다.|없습니다.")],
)
def test_yes_and_no_are_answers(language: languages.Language, answers: str) -> None:
    asked = {"en": "Is granite harder than chalk?", "ko": "화강암이 분필보다 단단합니까?"}[language.name]
    for answer in answers.split("|"):
        assert languages.tell(answer, KNOWN.values()) is language
        assert meaningless(answer, language=language) is None, answer
        assert pleads(answer, language=language) is None, answer
        assert copied(asked, answer, language=language) is None, answer
        assert copied(asked, f"{answer} {asked}", language=language), answer


def test_an_answer_that_is_the_instruction_is_a_copy() -> None:
    asked = "Name the three longest rivers of Europe and say where each of them ends."
    for answer in (asked, asked.upper(), f"  {asked}\n", f"And so: {asked} Ok?", asked[:-4]):
        assert copied(asked, answer, language=EN), answer
    for answer in (f"{asked} The Volga, the Danube and the Ural.", "The Volga, the Danube and the Ural.", "Europe"):
        assert copied(asked, answer, language=EN) is None, answer
    korean = "유럽에서 가장 긴 강 세 개를 말하고 어디로 흐르는지 쓰세요."
    assert copied(korean, f"네, {korean}", language=KO)
    assert copied(korean, "볼가강은 카스피해로 흐릅니다.", language=KO) is None


@pytest.mark.parametrize(
    ("language", "reply", "said", "rated"),
    [
        (EN, "MORE 3 5", "more", (3, 5)),
        (EN, "SAME 4 4", "same", (4, 4)),
        (EN, "They are equal.", "same", None),
        (EN, "It asks for more: 2, 10.", "more", (2, 10)),
        (EN, "banana", "unreadable", None),
        (EN, "More 3 11", "more", None),
        (EN, "moreover 1.5 2", "more", None),
        (EN, "", "unreadable", None),
        (EN, "The two are not the same. MORE 3 5", "more", (3, 5)),
        (EN, "No more is asked: SAME 3 3", "same", (3, 3)),
        (EN, "It is different in its words alone.\n\n**SAME** 3 3", "same", (3, 3)),
        (EN, "Was it MORE 3 5? No.\nSAME 3 3", "same", None),
        (KO, "같은 것 이상을 묻지 않으니 나아짐은 없습니다.\n같음 3 3", "same", (3, 3)),
        (KO, "동일하지 않습니다. 나아짐 3 5", "more", (3, 5)),
        (KO, "나아짐 3 5", "more", (3, 5)),
        (KO, "같음 4 4", "same", (4, 4)),
        (KO, "둘은 동일합니다.", "same", None),
        (KO, "글쎄요", "unreadable", None),
    ],
)
def test_a_judges_reply_is_read(language: languages.Language, reply: str, said: str, rated: object) -> None:
    assert verdict(reply, language) == said
    assert ratings(reply) == rated
    assert bool(same(said)) == (said == "same")


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("<think>\nMORE or SAME?\n</think>\n\nMORE 3 5", "MORE 3 5"),
        ("  <think></think>Yes.", "Yes."),
        ("Is it the SAME?\n</think>\nMORE 3 5", "MORE 3 5"),
        ("<think> it never ends", ""),
        ("A tag is closed by `</think>`, it says here.", "A tag is closed by `</think>`, it says here."),
        ("First. <think>later</think>", "First. <think>later</think>"),
        ("Plain.", "Plain."),
    ],
)
def test_thoughts_before_a_reply_are_no_part_of_it(reply: str, said: str) -> None:
    assert spoken(reply) == said


@pytest.fixture
def kept() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    prepare(connection)
    return connection


def test_near_duplicates_are_found_as_comparing_with_each_finds_them(kept: sqlite3.Connection) -> None:
    rng = random.Random(0)
    alphabet = "abcdefghijklmnop 가나다라마바사아"
    texts: list[str] = []
    found, expected = [], []
    for number in range(150):
        if texts and rng.random() < 0.5:  # a text that is kept, with some of it changed
            rate = rng.choice([0.005, 0.02, 0.1])
            text = "".join(rng.choice(alphabet) if rng.random() < rate else c for c in rng.choice(texts))
        else:
            text = "".join(rng.choices(alphabet, k=80))
        best = max((overlap(shingles(text), shingles(other)) for other in texts), default=0.0)
        expected.append(best >= 0.7)
        found.append(similar(kept, text, most=0.7) is not None)
        add(kept, str(number), text)
        texts.append(text)
    assert 20 < sum(expected) < 130
    assert found == expected


def test_case_width_and_spaces_make_no_difference(kept: sqlite3.Connection) -> None:
    add(kept, "first", "강 세 개를 말하세요: ABC")
    assert near(kept, "강  세 개를\n말하세요: ＡＢＣ") == [(1.0, "first")]
    assert near(kept, "산 이름 다섯 가지") == []
    assert similar(kept, "강 세 개를 말하세요: abc", most=0.7) == "100% the same as first"


def test_what_leaves_its_parent_as_it_is_is_no_duplicate_of_it(kept: sqlite3.Connection) -> None:
    parent, grandparent = text("en", "parent", count=60), text("en", "grandparent", count=60)
    add(kept, "seed-0", grandparent)
    add(kept, "1-0", parent, parent="seed-0")
    for other in (parent, grandparent):
        edited = f"{other} {text('en', 'more', count=15)}"
        assert overlap(shingles(other), shingles(edited)) > 0.7
        assert similar(kept, edited, most=0.7, parent="1-0") is None
        assert similar(kept, edited, most=0.7), "a stranger's is"
        assert similar(kept, edited, most=0.7, parent="seed-1"), "and what was made of another"
        assert similar(kept, f"{other} !", most=0.7, parent="1-0"), "but a copy is one"
