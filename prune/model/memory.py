"""Memory given back to the system when a layer is done with."""

from __future__ import annotations

import ctypes
import sys
from functools import cache


def release() -> None:
    """Return what was freed. The C library keeps it otherwise, in pieces too small for the next layer to fit into."""
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> ctypes._NamedFuncPointer | None:
    """glibc's malloc_trim; None where the C library has no such call."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
