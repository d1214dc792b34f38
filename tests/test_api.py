"""The public names: importable, documented, typed, and never a module of the same name."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import prune


@pytest.mark.parametrize("name", [name for name in prune.__all__ if not name.startswith("__")])
def test_public_names_are_documented_objects_not_modules(name: str) -> None:
    value = getattr(prune, name)
    assert callable(value), name
    assert inspect.getdoc(value), name
    assert inspect.getmodule(value) is not None


def test_type_checkers_see_the_same_names_from_the_same_homes() -> None:
    tree = ast.parse(Path(prune.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    typed = {alias.name: node.module for node in block.body for alias in node.names}  # type: ignore[attr-defined]
    assert typed == prune._HOMES


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        prune.nothing  # noqa: B018


def run(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize(
    "imports",
    [
        "import prune\nfrom transformers import AutoConfig",
        "from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer\nimport prune",
    ],
)
def test_importing_registers_the_non_uniform_types_in_either_order(imports: str) -> None:
    code = f"{imports}\nprint(AutoConfig.for_model('prune_llama').model_type)"
    assert run(code) == "prune_llama"


def test_the_command_imports_nothing_heavy_to_answer_help() -> None:
    code = (
        "import sys; sys.argv = ['prune', '--help']\n"
        "from prune.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print([name for name in ('torch', 'transformers', 'numpy', 'pydantic', 'rich') if name in sys.modules])"
    )
    assert run(code).splitlines()[-1] == "[]"
