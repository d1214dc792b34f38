"""What is said of a library that is missing can be typed as it stands, and mends it."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

from prune.errors import PruneError, need

ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def asked() -> list[tuple[str, str]]:
    """(library, extra) of every place in the package that needs one."""
    calls = [
        node
        for path in sorted((ROOT / "prune").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "need"
    ]
    return sorted({(call.args[0].value, call.args[1].value) for call in calls})  # type: ignore[attr-defined]


def test_every_extra_that_is_named_brings_the_library() -> None:
    named = asked()
    assert {extra for _, extra in named} == {"eval", "align", "search", "synthesize"}
    for library, extra in named:
        brought = [re.split("[>=<]", each)[0].replace("-", "_") for each in EXTRAS[extra]]
        assert library in brought


def test_a_missing_library_is_said_with_the_line_that_installs_it() -> None:
    need("json", "eval", what="this")
    with pytest.raises(PruneError) as caught:
        need("not_a_library", "eval", what="this", where="tasks")
    said = str(caught.value)
    assert said == 'tasks: this needs not-a-library, which is not installed: pip install ".[eval]"'


def test_no_page_tells_to_install_from_an_index_that_has_no_such_package() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "prune").rglob("*.py")]
    assert not [str(page) for page in pages if "install" in (text := page.read_text()) and "prune-kit[" in text]
