"""Texts as words and shingles: how the rules compare them."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

SHINGLE = 5  # characters
_LATIN = "[a-zß-ɏ]"
_WORD = re.compile(r"\w+(?:['’]\w+)*")


@lru_cache(maxsize=1024)  # several rules look at the same texts
def normal(text: str) -> str:
    """Letters of one width and case, with single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def words(text: str) -> list[str]:
    """The words of a text, normalised. In Korean they are the 어절, which spaces part."""
    return _WORD.findall(normal(text))


def length(text: str) -> int:
    """How many words a text has."""
    return len(words(text))


def says(text: str, phrase: str) -> bool:
    """Whether a phrase stands in a text as words of their own; what Korean hangs on a word may follow it."""
    said, sought = normal(text), normal(phrase)
    before = r"(?<!\w)" if re.match(r"\w", sought) else ""
    after = f"(?!{_LATIN})" if re.search(f"{_LATIN}\\Z", sought) else ""
    return sought in said and re.search(before + re.escape(sought) + after, said) is not None


def shingles(text: str) -> set[str]:
    """Every run of 5 characters of the normalised text; the whole text where it is shorter."""
    plain = normal(text)
    return {plain[start : start + SHINGLE] for start in range(max(len(plain) - SHINGLE, 0) + 1)}


def overlap(one: set[str], other: set[str]) -> float:
    """Jaccard's index: the share of all shingles that both have."""
    return len(one & other) / len(one | other) if one or other else 1.0


def spoken(reply: str) -> str:
    """A reply without the thoughts before it, `<think>...</think>`; nothing where they never end.

    Where the chat template opens them, the reply has their end alone, on a line of its own.
    """
    return re.sub(r"\A(\s*<think>.*?(</think>|\Z)|((?!<think>).)*?^</think>\s*$)", "", reply, flags=re.S | re.M).strip()


def run_in_common(text: str, template: str, size: int) -> str | None:
    """The first run of `size` words that a text shares with a template."""
    said = words(text)
    runs = {tuple(found[start : start + size]) for found in _pieces(template) for start in range(len(found) - size + 1)}
    found = (tuple(said[start : start + size]) for start in range(len(said) - size + 1))
    return next((" ".join(run) for run in found if run in runs), None)


def _pieces(template: str) -> list[list[str]]:
    """The words of a template between the places that are filled."""
    return [words(piece) for piece in re.split(r"\{\w+\}", template)]
