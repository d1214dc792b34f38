"""The table of families says what the families say."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from prune.model import family as families

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_script_writes() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "make_families.py"))
    assert script["PAGE"].read_text(encoding="utf-8") == script["page"](), "run python docs/make_families.py"


@pytest.mark.parametrize("page", ["docs/adding-a-family.md", "CONTRIBUTING.md"])
def test_the_worked_example_is_the_family_itself(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8").split("### A model family")[-1]
    names: dict[str, object] = {}
    exec(text.split("```python\n")[1].split("```")[0], names)
    assert names["FAMILY"] == families.of("starcoder2")
