"""What a recipe can name: one file each, described by the first paragraph of its docstring, and not imported."""

from __future__ import annotations

import ast
from itertools import takewhile
from pathlib import Path

from prune.recipe.load import shelf

_PACKAGE = Path(__file__).parent
FOLDERS = {  # kind -> the folder that is its registry, and what every file in it defines
    "criteria": ("remove/criteria", "KINDS"),
    "model families": ("model/families", "FAMILY"),
    "export formats": ("exports", "check"),
}


def listing() -> dict[str, dict[str, str]]:
    """Kind -> name -> one line. Only source is read, so it answers before torch could be imported."""
    steps = {"steps": _functions(_PACKAGE / "steps.py")}
    files = {kind: _files(_PACKAGE / folder, defines) for kind, (folder, defines) in FOLDERS.items()}
    return steps | files | {"recipes": {name: _comment(path) for name, path in shelf().items()}}


def _files(folder: Path, defines: str) -> dict[str, str]:
    trees = {path.stem: _tree(path) for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")}
    return {name: _line(tree) for name, tree in trees.items() if defines in _names(tree)}


def _functions(path: Path) -> dict[str, str]:
    """The recipe words, told as prune.recipe.bind tells them: public functions that take a `run` and give nothing."""
    functions = [node for node in _tree(path).body if isinstance(node, ast.FunctionDef) and node.name[0] != "_"]
    return {node.name: _line(node) for node in functions if _takes_run(node) and _gives_nothing(node)}


def _takes_run(node: ast.FunctionDef) -> bool:
    return [argument.arg for argument in node.args.args] == ["run"]


def _gives_nothing(node: ast.FunctionDef) -> bool:
    return isinstance(node.returns, ast.Constant) and node.returns.value is None


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


def _line(node: ast.Module | ast.FunctionDef) -> str:
    text = ast.get_docstring(node) or ""
    return " ".join(text.split("\n\n")[0].split())
