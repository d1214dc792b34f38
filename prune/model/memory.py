"""Memory: what is left of it, and what is given back to the system when a layer is done with."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path


def release() -> None:
    """Return what was freed. The C library keeps it otherwise, in pieces too small for the next layer to fit into."""
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> ctypes._NamedFuncPointer | None:
    """glibc's malloc_trim; None where the C library has no such call."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def available(device: str) -> int:
    """Bytes that may still be taken on a device: a GPU's free memory, or the system's within the control group's."""
    import torch

    if device.startswith("cuda"):
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    import psutil

    found = int(psutil.virtual_memory().available)
    limit, used = (_number(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current"))
    return found if limit is None or used is None else min(found, max(limit - used, 0))


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such group, or "max"
        return None
