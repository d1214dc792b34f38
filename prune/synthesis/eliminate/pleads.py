"""Pleads: the writer finds the instruction too hard and says so, shortly."""

from __future__ import annotations

from prune.synthesis.languages import Language
from prune.synthesis.words import length, normal, says


def pleads(answer: str, *, language: Language) -> str | None:
    """An apology in a short answer. In a long one it may be part of what was asked for."""
    word = next((normal(phrase) for phrase in language.pleads if says(answer, phrase)), None)
    if word is None or length(answer) >= language.short:
        return None
    return f"says {word!r} in {length(answer)} words"
