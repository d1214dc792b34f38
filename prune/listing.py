"""What a recipe can name: one file each, described by the first paragraph of its docstring, and not imported."""

from __future__ import annotations

import ast
from itertools import takewhile
from pathlib import Path

from prune.recipe.load import shelf

_PACKAGE = Path(__file__).parent
FOLDERS = {  # kind -> the folder that is its registry, and what every file in it defines ("" is its own name)
    "steps": ("steps", ""),
    "criteria": ("remove/criteria", "KINDS"),
    "model families": ("model/families", "FAMILY"),
    "divergences": ("recovery/divergences", "divergence"),
    "merge methods": ("merging/methods", "merge"),
    "export formats": ("exports", "check"),
}


def listing() -> dict[str, dict[str, str]]:
    """Kind -> name -> one line. Only source is read, so it answers before torch could be imported."""
    files = {kind: _files(_PACKAGE / folder, defines) for kind, (folder, defines) in FOLDERS.items()}
    return files | {"recipes": {name: _comment(path) for name, path in shelf().items()}}


def _files(folder: Path, defines: str) -> dict[str, str]:
    trees = {path.stem: _tree(path) for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")}
    return {name: _line(tree, name) for name, tree in trees.items() if (defines or name) in _names(tree)}


def _comment(path: Path) -> str:
    """The comment a recipe opens with, up to its first empty line."""
    lines = takewhile(lambda line: line.strip("# "), path.read_text(encoding="utf-8").splitlines())
    return " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))


def _names(tree: ast.Module) -> set[str]:
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    typed = [node.target for node in tree.body if isinstance(node, ast.AnnAssign)]
    return functions | {target.id for target in (*targets, *typed) if isinstance(target, ast.Name)}


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _line(tree: ast.Module, name: str) -> str:
    """The first paragraph of a file's docstring, without the name it may open with."""
    text = " ".join((ast.get_docstring(tree) or "").split("\n\n")[0].split())
    return text.removeprefix(f"`{name}`: ")
