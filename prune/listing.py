"""What there is to name in a recipe: one file each, described by the first line of its docstring, and not imported."""

from __future__ import annotations

import ast
from pathlib import Path

_PACKAGE = Path(__file__).parent
FOLDERS = {  # kind -> the folder that is its registry, and what every file in it defines
    "criteria": ("remove/criteria", "KINDS"),
    "model families": ("model/families", "FAMILY"),
    "export formats": ("exports", "check"),
}


def listing() -> dict[str, dict[str, str]]:
    """Kind -> name -> one line. Only source is read, so it answers before torch could be imported."""
    steps = {"steps": _functions(_PACKAGE / "steps.py")}
    return steps | {kind: _files(_PACKAGE / folder, defines) for kind, (folder, defines) in FOLDERS.items()}


def _files(folder: Path, defines: str) -> dict[str, str]:
    trees = {path.stem: _tree(path) for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")}
    return {name: _line(tree) for name, tree in trees.items() if defines in _names(tree)}


def _functions(path: Path) -> dict[str, str]:
    """The recipe words: the keys of STEPS, and the docstrings of the functions so named."""
    body = _tree(path).body
    tables = [
        node.value for node in body if _names(ast.Module([node], [])) == {"STEPS"} and isinstance(node, ast.Assign)
    ]
    keys = [key for table in tables if isinstance(table, ast.Dict) for key in table.keys]
    words = {key.value for key in keys if isinstance(key, ast.Constant)}
    return {node.name: _line(node) for node in body if isinstance(node, ast.FunctionDef) and node.name in words}


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
