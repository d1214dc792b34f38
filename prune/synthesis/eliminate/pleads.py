"""Pleads: the writer finds the instruction too hard and says so, shortly."""

from __future__ import annotations

from prune.synthesis.languages import Language
from prune.synthesis.words import length, normal


def pleads(answer: str, *, language: Language) -> str | None:
    """An apology in a short answer. In a long one it may be part of what was asked for."""
    said = normal(answer)
    word = next((phrase for phrase in map(normal, language.pleads) if phrase in said), None)
    if word is None or length(answer) >= language.short:
        return None
    return f"says {word!r} in {length(answer)} words"
