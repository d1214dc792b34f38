"""Same: a judge found no information gained, the evolved instruction asks what its parent asks."""

from __future__ import annotations

import re
from collections.abc import Sequence

from prune.synthesis.languages import Language
from prune.synthesis.words import normal

SAME, MORE, UNREADABLE = "same", "more", "unreadable"


def same(verdict: str) -> str | None:
    """A judge that cannot be understood has not objected."""
    return "the judge finds no information gained" if verdict == SAME else None


def verdict(reply: str, language: Language) -> str:
    """What a judge said last as it was asked to, as in `MORE 3 5`; else the word of the data that comes first."""
    said = normal(reply)
    lines = [(found, word) for word, phrases in language.verdicts.items() for found in _lines(phrases, said)]
    if lines:
        return max(lines)[1]
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


def _lines(phrases: Sequence[str], said: str) -> list[int]:
    """Where one of the phrases stands with two numbers after it."""
    words = "|".join(re.escape(normal(phrase)) for phrase in phrases)
    return [found.start() for found in re.finditer(rf"(?<!\w)(?:{words})\W+\d{{1,3}}\W+\d{{1,3}}(?!\w)", said)]


def _place(phrase: str, said: str) -> int:
    found = re.search(rf"(?<!\w){re.escape(normal(phrase))}", said)
    return found.start() if found else -1
