"""Copied: the answer gives the instruction back."""

from __future__ import annotations

from prune.synthesis.languages import Language
from prune.synthesis.words import normal, overlap, shingles, words

ALIKE = 0.8  # Jaccard's index of the shingles


def copied(instruction: str, answer: str, *, language: Language) -> str | None:
    """The answer is the instruction, nearly so, or with nothing but stop words, or yes or no, around it."""
    asked, said = normal(instruction), normal(answer)
    alike = overlap(shingles(asked), shingles(said))
    if alike >= ALIKE:
        return f"{alike:.0%} of the answer and the instruction is the same"
    if asked in said and set(words(said.replace(asked, " "))) <= language.stop_words | language.replies:
        return "the answer is the instruction again"
    return None
