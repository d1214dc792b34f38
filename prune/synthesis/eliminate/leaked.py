"""Leaked: the writer repeated the prompt's own words instead of doing what they say."""

from __future__ import annotations

from prune.synthesis.languages import Language
from prune.synthesis.words import normal, run_in_common


def leaked(instruction: str, *, parent: str, template: str, language: Language) -> str | None:
    """Phrases that only a prompt uses, or a long run of the template's words. What the parent says too is no leak."""
    said, before = normal(instruction), normal(parent)
    for phrase in map(normal, language.leaks):
        if phrase in said and phrase not in before:
            return f"says {phrase!r}"
    run = run_in_common(instruction, template, language.run)
    return f"repeats the template: {run!r}" if run and run not in before else None
