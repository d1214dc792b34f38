"""Two processes on a CPU (gloo): the losses of one, however they were started and however the weights lie."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prune.errors import PruneError
from prune.recipe import apply

ROOT = Path(__file__).parents[2]
STEP: dict[str, Any] = {"steps": 2, "batch_size": 3, "length": 16, "evaluate_every": 1}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    lines = [{"text": f"value {n} and value {n + 1} follow each other here, " * 9} for n in range(8)]
    (folder / "words.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    steps = [
        {"remove": {"what": ["channels", "heads"], "ratio": 0.5, "criterion": "magnitude"}},
        {"distill": {**STEP, "loss": {"logits": 1, "hidden": 0.1}}},
    ]
    calibration = {"data": "words.jsonl", "samples": 4, "length": 16}
    recipe = {"model": "bundled", "calibration": calibration, "steps": steps}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    return folder


def losses(place: Path, output: str) -> list[float]:
    content = json.loads((place / output / "prune.json").read_text())
    curve = content["steps"][1]["record"]["training"]["curve"]
    return [point[name] for point in curve for name in ("loss", "held_out") if point[name] is not None]


def run(place: Path, output: str, *arguments: str, launcher: tuple[str, ...] = ()) -> list[float]:
    """The losses of a recipe run from the command line."""
    command = [sys.executable, "-m", *launcher, "prune", "apply", "recipe.yaml", "--output", output, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return losses(place, output)


@pytest.fixture(scope="module")
def alone(place: Path) -> list[float]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        apply("recipe.yaml", output="alone")
    return losses(place, "alone")


def test_processes_that_a_run_starts_give_the_losses_of_one(place: Path, alone: list[float]) -> None:
    assert run(place, "two", "--processes", "2") == pytest.approx(alone, rel=1e-5)


def test_a_launchers_processes_with_weights_spread_over_them_give_the_losses_of_one(
    place: Path, alone: list[float]
) -> None:
    options = ("--cpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no")
    launcher = ("accelerate.commands.launch", *options, "--dynamo_backend", "no", "-m")
    found = run(place, "spread", "--set", "steps.1.sharded=true", launcher=launcher)
    assert found == pytest.approx(alone, rel=1e-5)


def test_processes_of_a_launcher_are_not_started_again(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(PruneError, match="--processes: processes were started by a launcher already"):
        apply("recipe.yaml", output="none", processes=2)
