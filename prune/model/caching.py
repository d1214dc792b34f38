"""The key-value cache of a module: what its forward calls it, and taking it out of what the forward gives."""

from __future__ import annotations

import copy
import inspect
from typing import Any

NAMES = ("cache", "past_key_values")  # transformers renamed it in 5.24


def cache_argument(model: Any) -> str:
    """What the forward of a module, or of its class, calls its key-value cache."""
    taken = inspect.signature(model.forward).parameters
    return next((name for name in NAMES if name in taken), NAMES[-1])


def takes_cache(model: Any) -> bool:
    """Whether a forward takes a key-value cache at all."""
    return any(name in inspect.signature(model.forward).parameters for name in NAMES)


def cache_of(output: Any) -> Any:
    """The filled cache in a forward's output, or None."""
    return next((output[name] for name in NAMES if output.get(name) is not None), None)


def repeated(cache: Any, rows: int) -> Any:
    """A copy of a cache of one row, for `rows` rows; the given one is not changed by what is appended to the copy."""
    own = copy.deepcopy(cache)
    if rows > 1:
        own.batch_repeat_interleave(rows)
    return own


def repeatable(cache: Any, length: int) -> bool:
    """Whether a cache filled with `length` tokens of one row can be shared by the rows that continue it.

    Not where a layer keeps another state than keys and values, nor where it does not know how long it is.
    """
    kinds = [type(layer).__name__ for layer in getattr(cache, "layers", [])]
    plain = bool(kinds) and not any("Linear" in kind for kind in kinds)
    return plain and hasattr(cache, "batch_repeat_interleave") and cache.get_seq_length() == length
