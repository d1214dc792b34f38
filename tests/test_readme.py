"""The README stays true: its recipe is the packaged one, and its commands and code run as they stand there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from prune import cli

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def blocks(language: str, text: str = TEXT) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipes in it, as a clone has, and nothing else."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    return folder


def run(command: list[str], place: Path) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr}"
    return done.stdout


def test_it_opens_with_two_commands_of_one_line() -> None:
    install, test = blocks("bash")[0].splitlines()
    assert install == "pip install . && prune apply recipes/quickstart.yaml"
    assert test == "pip install tox && tox"
    assert "tox" in (ROOT / ".ci" / "run").read_text()


def test_the_recipe_it_shows_is_the_packaged_one() -> None:
    shown = yaml.safe_load(blocks("yaml")[0])
    packaged = yaml.safe_load((ROOT / "recipes" / "quickstart.yaml").read_text())
    packaged.pop("seed")
    assert shown == packaged


def test_every_command_and_every_line_of_python_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first command and the code that needs nothing of ours in processes of their own, the rest in this one."""
    first, *others = blocks("bash")
    word, *arguments = shlex.split(first.splitlines()[0].split("&&")[1])
    assert word == "prune"
    run([sys.executable, "-m", "prune", *arguments], place)
    monkeypatch.chdir(place)
    for line in (line for block in others for line in block.splitlines()):
        word, *arguments = shlex.split(line)
        assert word == "prune", line
        assert cli.run(arguments) == 0, line
    stock, ours = blocks("python")
    assert "prune" not in stock.replace("out/quickstart", "")
    run([sys.executable, "-c", stock], place)
    exec(compile(ours, "README.md", "exec"), {})
    assert (place / "out" / "small" / "config.json").exists()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", TEXT))))
def test_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target).exists()


def test_the_page_on_any_network_runs_as_it_stands(place: Path) -> None:
    (code,) = blocks("python", (ROOT / "docs" / "any-network.md").read_text())
    run([sys.executable, "-c", code], place)
    assert (place / "out" / "small-network" / "model.onnx").exists()
