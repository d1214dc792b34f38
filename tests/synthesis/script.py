"""A scripted writer: it knows each prompt by its template, and says what the plan has for the slot."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field

from prune.synthesis import languages
from prune.synthesis.writers.writer import Replies, Reply, Request, Writer

SYLLABLES = {
    "en": ["ba", "ko", "lim", "der", "sto", "gra", "vel", "mun", "pi", "tos", "rek", "wan", "dul", "fe", "sha", "nor"],
    "ko": ["가", "너", "도", "루", "미", "배", "소", "우", "지", "차", "쿠", "태", "포", "허", "글", "달"],
}
OUTCOMES = ("kept", "cut", "leaked", "meaningless", "similar", "same", "empty answer", "pleads", "copied")
LEAK = {"en": "rewritten prompt: ", "ko": "다시 쓴 프롬프트: "}
PLEA = {"en": "Sorry, that is hard.", "ko": "죄송하지만 어렵습니다."}
TAG = {"en": "instruction", "ko": "지시문"}
OPERATIONS = ("constrain", "deepen", "concretise", "reason", "complicate", "breadth")


def text(language: str, *key: object, count: int = 12) -> str:
    """Words that nobody else gets."""
    rng = random.Random(repr((language, *key)))
    return " ".join("".join(rng.choices(SYLLABLES[language], k=rng.randint(2, 4))) for _ in range(count)) + "."


def matcher(template: str) -> re.Pattern[str]:
    """What a filled template looks like."""
    parts = re.split(r"\{(\w+)\}", template.strip())
    pattern = "".join(re.escape(p) if n % 2 == 0 else f"(?P<{p}>.*)" for n, p in enumerate(parts))
    return re.compile(pattern, re.DOTALL)


@dataclass
class Script:
    """Says for each slot what the plan has; remembers what it was asked, as (operation, instruction)."""

    language: str
    plan: Callable[[str], str]  # the seed's instruction -> the outcome of its evolution
    asked: list[tuple[str, str]] = field(default_factory=list)
    origin: dict[str, str] = field(default_factory=dict)  # an evolved instruction -> the one it was made of
    prompts: list[str] = field(default_factory=list)

    def __call__(self, prompt: str) -> str:
        self.prompts.append(prompt)
        known = languages.load()[self.language].prompts
        for name in (*OPERATIONS, "judge"):
            if found := matcher(known[name]).fullmatch(prompt):
                return self._judge(found) if name == "judge" else self._evolve(name, found["instruction"])
        return self._answer(prompt)

    def writer(self) -> Writer:
        """The script as a writer whose tokens run out where the plan says so."""

        def answer(requests: Sequence[Request], wanted: Set[int]) -> Replies:
            for place in sorted(wanted):
                said = self(requests[place].prompt)
                cut = f"<{TAG[self.language]}>" in said and f"</{TAG[self.language]}>" not in said
                yield place, Reply(said, 1, 1, truncated=cut)

        return Writer("Script", "Script", answer)

    def _evolve(self, operation: str, parent: str) -> str:
        self.asked.append((operation, parent))
        outcome = self.plan(parent)
        evolved = {
            "leaked": LEAK[self.language] + text(self.language, parent),
            "meaningless": "?!",
            "similar": parent + " !",
        }.get(outcome, text(self.language, "evolved", parent))
        self.origin[evolved] = parent
        tag = TAG[self.language]
        return f"<{tag}>\n{evolved}" + ("" if outcome == "cut" else f"\n</{tag}>")

    def _judge(self, found: re.Match[str]) -> str:
        same = self.plan(found["parent"]) == "same"
        return {"en": ("MORE 3 5", "SAME 3 3"), "ko": ("나아짐 3 5", "같음 3 3")}[self.language][same]

    def _answer(self, instruction: str) -> str:
        outcome = self.plan(self.origin[instruction]) if instruction in self.origin else "kept"
        answers = {"empty answer": "...", "pleads": PLEA[self.language], "copied": instruction}
        return answers.get(outcome, text(self.language, "answer", instruction))
