"""Two processes on a CPU (gloo): the losses and the weights of one, however they were started and the weights lie."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from prune.cli import cli
from prune.errors import PruneError
from prune.recipe import apply
from prune.recovery import fit as loops

ROOT = Path(__file__).parents[2]
STEP: dict[str, Any] = {"steps": 3, "batch_size": 3, "length": 16, "evaluate_every": 1}
TALK: dict[str, Any] = {"steps": 2, "batch_size": 2, "length": 64, "samples": 4, "data": "talk.jsonl"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    lines = [{"text": f"value {n} and value {n + 1} follow each other here, " * 9} for n in range(8)]
    (folder / "words.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    talk = [{"instruction": f"Write function {n}.", "output": f"def f(): return {n}"} for n in range(40)]
    (folder / "talk.jsonl").write_text("".join(json.dumps(line) + "\n" for line in talk))
    steps = [
        {"remove": {"what": ["channels", "heads"], "ratio": 0.5, "criterion": "magnitude"}},
        {"distill": {**STEP, "loss": {"logits": 1, "hidden": 0.1}, "sharded": True}},
        {"train": {**TALK, "objective": "sft"}},
    ]
    calibration = {"data": "words.jsonl", "samples": 4, "length": 16}
    for name, count in (("whole", 3), ("short", 2)):
        recipe = {"model": "bundled", "calibration": calibration, "steps": steps[:count]}
        (folder / f"{name}.yaml").write_text(json.dumps(recipe))
    return folder


def losses(place: Path, output: str) -> list[float]:
    """Of all trainings in a run."""
    steps = json.loads((place / output / "prune.json").read_text())["steps"]
    curve = [point for step in steps for point in step["record"].get("training", {}).get("curve", [])]
    return [point[name] for point in curve for name in ("loss", "held_out") if point[name] is not None]


def weights(place: Path, output: str) -> dict[str, torch.Tensor]:
    return load_file(place / output / "model.safetensors")


@pytest.fixture(scope="module")
def alone(place: Path) -> Path:
    """One process: a run to the end, and one that is stopped in its training after one step."""
    honest = loops._step

    def dying(job: Any, facts: Any, best: Any) -> Any:
        if facts.step == 1:
            raise KeyboardInterrupt
        return honest(job, facts, best)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr("prune.recipe.output.report", lambda *_: {})  # drawing takes longer than training here
        apply("whole.yaml", output="alone")
        patch.setattr(loops, "_step", dying)
        with pytest.raises(KeyboardInterrupt):
            apply("whole.yaml", output="spread")
    return place


def test_processes_that_a_run_starts_give_what_one_gives(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients averaged (DDP); batches of three windows, so that one process has two of them and the other one."""
    monkeypatch.chdir(alone)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr("prune.recipe.output.report", lambda *_: {})
    options = ["--output", "two", "--processes", "2", "--set", "steps.1.sharded=false"]
    done = CliRunner().invoke(cli, ["apply", "short.yaml", *options])
    assert done.exit_code == 0, done.output
    found = losses(alone, "two")
    assert found == pytest.approx(losses(alone, "alone")[: len(found)], rel=1e-5) and len(found) == 7


def test_a_launchers_processes_go_on_with_weights_spread_over_them_and_give_what_one_gives(alone: Path) -> None:
    """Weights spread (FSDP) and put together again; then TRL's trainer, on batches of as many conversations."""
    options = ["--cpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    command = ["accelerate.commands.launch", *options, "-m", "prune", "apply", "whole.yaml", "--output", "spread"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run: dict[str, Any] = {"cwd": alone, "env": environment, "capture_output": True, "text": True, "check": False}
    done = subprocess.run([sys.executable, "-m", *command], timeout=600, **run)
    assert done.returncode == 0, done.stderr
    assert "going on after step 1" in done.stderr
    assert losses(alone, "spread") == pytest.approx(losses(alone, "alone"), rel=1e-4)
    mine, theirs = weights(alone, "spread"), weights(alone, "alone")
    assert list(mine) == list(theirs)
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-3, atol=1e-4)


def test_processes_of_a_launcher_are_not_started_again(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(PruneError, match="--processes: processes were started by a launcher already"):
        apply("short.yaml", output="none", processes=2)
