"""Leaked: the writer repeated the prompt's own words instead of doing what they say."""

from __future__ import annotations

from prune.synthesis.languages import Language
from prune.synthesis.words import normal, run_in_common, says


def leaked(instruction: str, *, parent: str, template: str, language: Language) -> str | None:
    """Phrases that only a prompt uses, or a long run of the template's words. What the parent says too is no leak."""
    for phrase in language.leaks:
        if says(instruction, phrase) and not says(parent, phrase):
            return f"says {normal(phrase)!r}"
    run = run_in_common(instruction, template, language.run)
    return f"repeats the template: {run!r}" if run and run not in normal(parent) else None
