"""Imports point down, rooms do not import each other, and a criterion does not import another."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "prune"
# Lower numbers are lower floors; a module may import its own floor's folder and everything below.
FLOORS = {
    "errors": 0,
    "document": 1,
    "progress": 1,
    "startup": 1,
    "interrupt": 1,
    "options": 1,
    "files": 1,
    "bundled": 1,
    "data": 2,
    "instructions": 2,
    "model": 3,
    "measure": 4,
    "labels": 4,
    "inspection": 5,
    "stranger": 5,
    "networks": 6,
    "forecast": 5,
    "remove": 5,
    "evaluation": 5,
    "exports": 5,
    "merging": 5,
    "recovery": 5,
    "run": 5,
    "report": 5,
    "synthesis": 5,
    "rehearsal": 6,
    "steps": 6,
    "recipe": 7,
    "listing": 7,
    "cli": 8,
    "__main__": 9,
}
ROOMS = {name for name, floor in FLOORS.items() if floor == 5}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" or path.parent != PACKAGE)


def room(path: Path) -> str:
    if path == PACKAGE / "bundled" / "train.py":
        return "__main__"  # a program that made the bundled model, not a part of the package's floors
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Dotted names below `prune` that a module imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "prune":
            assert node.level == 0, path
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "prune"}
    return {name.removeprefix("prune").removeprefix(".") for name in found} - {"", "__version__"}


def defines(path: Path) -> set[str]:
    """The functions at the top of a module."""
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    own = room(path)
    for name in imported(path):
        other = name.split(".")[0]
        assert other in FLOORS, f"{path}: {name} is not on the plan in docs/architecture.md"
        if other == own:
            continue
        assert FLOORS[other] <= FLOORS[own], f"{path} imports upwards: {name}"
        assert not {own, other} <= ROOMS, f"{path} imports another room: {name}"


@pytest.mark.parametrize("folder", ["remove/criteria", "recovery/divergences", "exports", "merging/methods"])
def test_methods_do_not_import_each_other(folder: str) -> None:
    methods = {
        path
        for path in (PACKAGE / folder).glob("*.py")
        if defines(path) & {"score", "score_model", "check", "divergence"}
    }
    assert methods
    for path in methods:
        for name in imported(path):
            if name.startswith(folder.replace("/", ".") + "."):
                other = name.split(".")[len(folder.split("/"))]
                assert other not in {method.stem for method in methods}, f"{path} imports the method {other}"
