"""Same: a judge found no information gained, the evolved instruction asks what its parent asks."""

from __future__ import annotations

import re

from prune.synthesis.languages import Language
from prune.synthesis.words import normal

SAME, MORE, UNREADABLE = "same", "more", "unreadable"


def same(verdict: str) -> str | None:
    """A judge that cannot be understood has not objected."""
    return "the judge finds no information gained" if verdict == SAME else None


def verdict(reply: str, language: Language) -> str:
    """What a judge said: the word of the language's data that comes first."""
    said = normal(reply)
    first = {
        word: min((place for phrase in phrases if (place := _place(phrase, said)) >= 0), default=len(said))
        for word, phrases in language.verdicts.items()
    }
    word = min(first, key=lambda word: first[word])
    return word if first[word] < len(said) else UNREADABLE


def ratings(reply: str) -> tuple[int, int] | None:
    """The two difficulties from 1 to 10 that a judge gave; None unless there are just two such numbers."""
    numbers = [int(found) for found in re.findall(r"(?<![\d.])\d{1,3}(?![\d.]*\d)", reply)]
    if len(numbers) != 2 or not all(1 <= number <= 10 for number in numbers):
        return None
    return numbers[0], numbers[1]


def _place(phrase: str, said: str) -> int:
    found = re.search(rf"(?<!\w){re.escape(normal(phrase))}", said)
    return found.start() if found else -1
