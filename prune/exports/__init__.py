"""Export formats: one file each, and the file's name is the word in recipes and on the command line."""

from __future__ import annotations

from pathlib import Path

_SHARED = {"export", "parity"}  # what formats are called through, and what they share


def formats() -> list[str]:
    """The formats there are: the file names of this folder."""
    names = (path.stem for path in Path(__file__).parent.glob("*.py"))
    return sorted(name for name in names if not name.startswith("_") and name not in _SHARED)
