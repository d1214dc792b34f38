"""Meaningless: only punctuation, stop words, or one thing said over and over."""

from __future__ import annotations

from prune.synthesis.languages import Language
from prune.synthesis.words import normal, shingles, words

LONG = 100  # characters; from so many on, a text of few different pieces says nothing
DIFFERENT = 0.15  # different shingles for each character: below that, a text only repeats itself


def meaningless(text: str, *, language: Language) -> str | None:
    """Why a text means nothing. A bare number means something: it may be an answer."""
    said = words(text)
    if not said:
        return "holds no word"
    if all(word in language.stop_words for word in said):
        return "holds stop words only"
    size = len(normal(text))
    if size >= LONG and len(shingles(text)) < DIFFERENT * size:
        return "repeats itself"
    return None
