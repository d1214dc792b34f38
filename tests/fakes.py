"""A model that is a line of text, and steps on it: enough for the run loop, and quick. No torch."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from prune import cli, files
from prune.errors import PruneError
from prune.recipe import Parts, apply, loop
from prune.run import Run


@dataclass(frozen=True)
class FakeModel:
    text: str
    weights: tuple[Path, ...] = ()

    def fingerprint(self) -> dict[str, str]:
        return {path.name: files.sha256(path) for path in self.weights}


def open_fake(source: str | Path, *, revision: str | None, headers: bool) -> FakeModel:  # noqa: ARG001  # as the real one
    path = Path(source) / "weights.txt"
    if not path.is_file():
        raise PruneError(f"no model folder {str(source)!r}")
    return FakeModel(path.read_text(), (path,))


def write_fake(model: FakeModel, folder: Path) -> dict[str, str]:
    (folder / "weights.txt").write_text(model.text)
    (folder / "config.json").write_text('{"model_type": "llama"}\n')
    return {name: files.sha256(folder / name) for name in ("config.json", "weights.txt")}


def remove(run: Run, *, count: Annotated[int, Field(ge=1)], plan: str | None = None) -> None:  # noqa: ARG001
    """Takes letters away."""
    if count >= len(run.model.text):
        raise PruneError(f"count must leave something of {len(run.model.text)} letters, not {count}", where="count")
    if not run.dry:
        CALLS.append("remove")
    small = run.model.text[count:]
    run.record |= {"removed": {"letters": f"{count} of {len(run.model.text)}"}}
    run.record |= {"parameters": [len(run.model.text), len(small)], "bytes": [len(run.model.text), len(small)]}
    if run.dry:
        run.record["needs"] = {"memory": 1.0, "disk": float(len(small)), "seconds": 0.0}
    run.record["proof"] = {"max_relative_difference": 3e-7, "tolerance": 1e-4}
    run.model = FakeModel(small)


def evaluate(
    run: Run,
    *,
    text: str | None = None,  # noqa: ARG001
    fail: bool = False,
    crash: bool = False,
    busy: bool = False,
    asks: int = 0,
    sleep: float = 0.0,
) -> None:
    """Counts letters."""
    if run.dry:
        return
    CALLS.append("evaluate")
    if asks:
        _ask(run.unfinished, asks)
    time.sleep(sleep)
    if busy:  # minutes inside one call into C
        print("busy", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
    if crash:
        raise RuntimeError("a bug\nof ours")
    if fail:
        raise PruneError("the text is too short")
    run.record["perplexity"] = {"data": "letters", "length": 1, "before": 2.0, "after": float("inf")}
    run.timings["latency_seconds"] = [time.time(), 1.0]
    run.warnings.append("letters are few")


def _ask(unfinished: Path, asks: int) -> None:
    """Asks one question a try, and is done once all are answered."""
    unfinished.mkdir(exist_ok=True)
    answered = len(list(unfinished.iterdir()))
    (unfinished / str(answered)).write_text("answered")
    if answered + 1 < asks:
        raise PruneError(f"answered {answered + 1} of {asks}")


def export(run: Run) -> None:
    """Writes letters elsewhere."""
    if run.dry:
        return
    CALLS.append("export")
    (run.folder / "onnx").mkdir()
    (run.folder / "onnx" / "model.onnx").write_text(run.model.text.upper())


remove.reads = ("plan",)  # type: ignore[attr-defined]
evaluate.data = ("text",)  # type: ignore[attr-defined]
evaluate.calibrated = False  # type: ignore[attr-defined]
CALLS: list[str] = []  # what ran in this process, dry runs left out


def fingerprint(source: str, *, split: str | None) -> str:
    return files.sha256(source) if source.endswith(".txt") and Path(source).exists() else f"{source} {split}"


def device(name: str) -> str:
    if name == "cuda":
        raise PruneError("no CUDA device is here; choices: auto, cpu")
    return "cpu"


PARTS = Parts({"remove": remove, "evaluate": evaluate, "export": export}, open_fake, write_fake, fingerprint, device)


def run(recipe: Any, **options: Any) -> Any:
    return apply(recipe, parts=PARTS, **options)


def main() -> None:
    """A run in a process of its own, to be killed."""
    print("imported", flush=True)
    run(sys.argv[1])


def command_line() -> None:
    """The real command line around the fake model and steps."""
    loop.default_parts = lambda: PARTS
    cli.main()


def command(module: str, *arguments: str, call: str = "main") -> dict[str, Any]:
    """The Popen arguments that call a function of a module in a process with these arguments.

    The process takes itself for the `prune` command, which does not import transformers just for importing prune.
    """
    code = f"import sys; sys.argv[0] = 'prune'; import {module}; {module}.{call}()"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    return {"args": [sys.executable, "-c", code, *arguments], "env": environment, "stdout": subprocess.PIPE}
