"""How byte-level BPE splits text before it merges: the forms that llama.cpp knows, by its names for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")

# The regular expression before a ByteLevel that has none of its own -> the name.
SPLITS: Mapping[str, str] = {
    rf"{_SHORT}|{_WORD}|\p{{N}}{{1,3}}|{_REST}": "llama-bpe",
    rf"{_SHORT}|{_WORD}|\p{{N}}|{_REST}": "qwen2",
    rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_SLASH}": "tekken",
    rf"{_CASED[0]}{_SHORT}?|{_CASED[1]}{_SHORT}?|\p{{N}}{{1,3}}|{_SLASH}": "gpt-4o",
}


def known(step: dict[str, Any] | None) -> str | None:
    """llama.cpp's name for a pre-tokenizer as `tokenizers` writes it, or None."""
    steps = step["pretokenizers"] if step and step["type"] == "Sequence" else [step]
    match [_shape(one) for one in steps]:
        case ["bytes by word"]:
            return "gpt-2"
        case ["digits", "bytes by word"]:
            return "smollm"
        case [("split", pattern), "bytes"]:
            return SPLITS.get(str(pattern))
    return None


def _shape(step: dict[str, Any] | None) -> object:
    match step:
        case {"type": "ByteLevel", "use_regex": use}:
            return "bytes by word" if use else "bytes"
        case {"type": "Digits", "individual_digits": True}:
            return "digits"
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
            return ("split", pattern)
    return None
