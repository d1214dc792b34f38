"""Peak memory of running a model, in a process of its own, so that nothing else is counted.

`python -m prune.evaluation.peak REQUEST` is that process; REQUEST is JSON, and so is the line it prints.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from prune.errors import PruneError
from prune.evaluation.runners import ONNX, PYTORCH, Runner, onnx, pytorch
from prune.evaluation.speed import Setting, once, tokens, within
from prune.model.model import Model
from prune.model.open import open as open_model
from prune.model.save import load, save

STATUS = Path("/proc/self/status")


def peaks(
    model: Model | Path,
    settings: Sequence[Setting],
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> list[int]:
    """Bytes at the peak of loading a model (or, by a path, an exported graph) and running each setting.

    The settings are run from small to large, so that each peak is its own. On a GPU it is what torch held there; on a
    CPU the process's resident memory beyond what Python and the libraries take, with what loading takes: a machine
    must have that too. Raises PruneError when the process fails, as it does without enough memory.
    """
    order = sorted(range(len(settings)), key=lambda number: settings[number].batch * sum(settings[number][1:]))
    with _on_disk(model) as path:
        request = {
            "path": str(path),
            "runtime": PYTORCH if isinstance(model, Model) else ONNX,
            "settings": [settings[number] for number in order],
            "device": device,
            "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
            "seed": seed,
            "threads": torch.get_num_threads(),
        }
        command = [sys.executable, "-m", "prune.evaluation.peak", json.dumps(request)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        raise PruneError(f"the process whose memory is measured failed: {reason[:200]}", where="speed.memory")
    found = dict(zip(order, json.loads(done.stdout.splitlines()[-1]), strict=True))
    return [found[number] for number in range(len(settings))]


@contextmanager
def _on_disk(model: Model | Path) -> Iterator[Path]:
    """Where a model lies, written for the occasion if it is a cut or in memory."""
    if isinstance(model, Path):
        yield model
        return
    if lies := _folder(model):
        yield lies
        return
    with TemporaryDirectory() as folder:
        yield save(model, Path(folder) / "model")


def _folder(model: Model) -> Path | None:
    """The folder a model was opened from, where it still has the shapes that it has there; what it weighs is theirs."""
    folders = {path.parent for path in model.weights}
    if len(folders) != 1:
        return None
    (folder,) = folders
    lies = open_model(folder)
    alike = lies.tensors.info == model.tensors.info and lies.config.to_dict() == model.config.to_dict()
    return folder if alike else None


def main(text: str) -> None:
    """Runs a request and prints the peaks."""
    asked = json.loads(text)
    torch.set_num_threads(asked["threads"])
    settings = [Setting(*values) for values in asked["settings"]]
    dtype = getattr(torch, asked["dtype"]) if asked["dtype"] else None
    on_gpu = asked["device"] != "cpu"
    if asked["runtime"] == ONNX:
        import onnxruntime  # noqa: F401  # what it takes by itself is not the model's
    else:
        from transformers import AutoModelForCausalLM  # noqa: F401
    base = 0 if on_gpu else _resident("VmRSS")
    runner = _runner(asked, dtype)
    found = []
    for setting in settings:
        fits = within(setting, [runner])
        with torch.inference_mode():
            once(runner, tokens(fits, max(runner.vocabulary, 1), asked["seed"]), fits)
        found.append(torch.cuda.max_memory_allocated() if on_gpu else _resident("VmHWM") - base)
    print(json.dumps(found))


def _runner(asked: dict[str, Any], dtype: torch.dtype | None) -> Runner:
    if asked["runtime"] == ONNX:
        return onnx(Path(asked["path"]))
    return pytorch(load(asked["path"], device=asked["device"], dtype=dtype).eval(), seed=asked["seed"])


def _resident(name: str) -> int:
    """Resident bytes now (VmRSS) or at most (VmHWM).

    The largest that `getrusage` knows is not used where there is another way: on Linux a child begins with its
    parent's.
    """
    if STATUS.exists():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main(sys.argv[1])
