"""Merge methods, one file each; the file's name is the word in a config.

A method has `merge(block, facts, *, ...)`, which gives the merged entries of a block; its keyword arguments are the
parameters a config may set (prune/merging/block.py). `facts` is what `measure(blocks, ...)` found in a pass over the
whole tensor, or None. BASE says what the base model is to it: "needed", "optional", or "input" when it is one of the
models like any other. LEAST and MOST bound the other models. `whole(...)` says whether rows matter, so that a block
must be a whole tensor; `check(...)` refuses values that make no sense. DRAWS marks a method that draws at random.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from prune.errors import unknown


def names() -> list[str]:
    """The methods there are: the file names of this folder."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))


def method(name: str) -> ModuleType:
    """A method by name. Raises PruneError with the choices."""
    if name not in names():
        raise unknown("merge_method", name, names())
    return importlib.import_module(f"{__name__}.{name}")
