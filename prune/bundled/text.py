"""Text that every CPython carries: language reference topics, and the standard library's docstrings and source."""

from __future__ import annotations

import ast
import hashlib
import os
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Literal

Split = Literal["train", "heldout"]

# Left out: tests, other people's packages, what varies from build to build, and tables that are not text.
SKIPPED = {
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "turtledemo",
    "site-packages",
    "dist-packages",
    "encodings",
    "pydoc_data",
}
HELDOUT = 0.05


def names(split: Split) -> list[str]:
    """The sorted names of one side's entries: `topics.NAME` or a module's dotted name."""
    assert split in ("train", "heldout"), split
    every = [f"topics.{topic}" for topic in topics] + list(_modules())
    return sorted(name for name in every if _heldout(name) == (split == "heldout"))


@cache
def texts(name: str) -> tuple[str, ...]:
    """The documents of one entry: a topic, or a module's docstrings and its source. Nothing where it does not parse."""
    if name not in _modules():
        return (topics[name.removeprefix("topics.")],)
    try:
        source = _modules()[name].read_text(encoding="utf-8")
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # a template or another encoding, kept beside the modules
        return ()
    prose = "\n\n".join(f"{title}\n\n{text}" for title, text in _docstrings(tree, name))
    return tuple(text for text in (prose, source) if text.strip())


def documents(split: Split) -> list[str]:
    """Every document of one side, in the order of `names`. A module's docstrings and source are on the same side."""
    return [text for name in names(split) for text in texts(name)]


def fingerprint(split: Split) -> str:
    """sha256 of the files and topics that one side is made from, with their names."""
    digest = hashlib.sha256()
    for name in names(split):
        path = _modules().get(name)
        content = path.read_bytes() if path else topics[name.removeprefix("topics.")].encode()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _heldout(name: str) -> bool:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) < HELDOUT * 2**32


@cache
def _modules() -> dict[str, Path]:
    root = Path(sysconfig.get_path("stdlib"))
    found = {}
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in SKIPPED and name.isidentifier()]
        for path in (
            Path(folder, file) for file in files if file.endswith(".py") and not file.startswith("_sysconfig")
        ):
            found[".".join(path.relative_to(root).with_suffix("").parts)] = path
    return found


def _docstrings(node: ast.AST, title: str) -> Iterator[tuple[str, str]]:
    """(dotted name, docstring) of a module, its classes and functions, outermost first."""
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        if text := ast.get_docstring(node):
            yield title, text
        for child in node.body:
            yield from _docstrings(child, f"{title}.{getattr(child, 'name', '')}")
