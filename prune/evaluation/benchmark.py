"""Speed and memory of models and of their exports, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from typing_extensions import TypedDict  # pydantic refuses that of typing before Python 3.12

from prune.evaluation.peak import peaks
from prune.evaluation.runners import PYTORCH, bounds, onnx, pytorch, runtime_of
from prune.evaluation.speed import Entry, Setting, distinct, entry, settings, speed, suffix
from prune.model.foreign import read_config
from prune.model.model import Model
from prune.model.save import load
from prune.progress import Progress

LENGTH = 256  # of a prompt where nothing else is asked
Positive = Annotated[int, Field(ge=1)]


class Speed(TypedDict, total=False):
    """What is timed: every batch size with every length."""

    batch: Positive | list[Positive]
    length: Positive | list[Positive]
    new: Annotated[int, Field(ge=0)]
    seconds: Annotated[float, Field(gt=0)]
    memory: bool


def benchmark(
    models: Mapping[str, Model],
    graphs: Mapping[str, Sequence[Path]],
    asked: Speed,
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Entry]:
    """Prefill, decoding and peak memory, by quantity; see `speed` and `peaks`.

    `graphs` are exported model.onnx files under the names of their models, run beside them.
    """
    wanted = settings(asked.get("batch", 1), asked.get("length", LENGTH), asked.get("new", 32))
    with (progress or Progress(quiet=True)).track("speed"):
        runners = {
            name: [pytorch(load(model, device=device, dtype=dtype).eval(), seed=seed)] for name, model in models.items()
        }
        for name, paths in graphs.items():
            runners.setdefault(name, []).extend(onnx(path, **_bounds(path), seed=seed) for path in paths)
        chosen = distinct(wanted, [runner for own in runners.values() for runner in own])
        found = speed(runners, chosen, seconds=asked.get("seconds", 4.0), seed=seed)
        runners.clear()
        if asked.get("memory", True):
            place: dict[str, Any] = {"device": device, "dtype": dtype, "seed": seed}
            found |= _memory(PYTORCH, models, chosen, **place)
            pairs = [(name, path) for name, paths in graphs.items() for path in paths]
            for runtime in dict.fromkeys(runtime_of(path) for _, path in pairs):
                own = {name: path for name, path in pairs if runtime_of(path) == runtime}
                found |= _memory(runtime, own, chosen, **place)
    return found


def shortened(asked: Speed, found: Mapping[str, Entry]) -> list[str]:
    """A line for each length that the models have too few positions for, and so was timed shorter than asked."""
    lengths = sorted({setting.length for setting in settings(1, asked.get("length", LENGTH), 0)})
    timed = sorted({entry["of"]["length"] for entry in found.values()})
    cut = [length for length in lengths if length not in timed]
    if not cut:
        return []
    listed = ", ".join(map(str, cut))
    return [f"speed: prompts of {listed} tokens were asked, and the models have positions for {timed[-1]} of them"]


def _memory(runtime: str, sources: Mapping[str, Model | Path], chosen: list[Setting], **place: Any) -> dict[str, Entry]:
    own = {name: peaks(source, chosen, **place) for name, source in sources.items()}
    if not own:
        return {}
    return {
        f"memory{suffix(setting, chosen, runtime)}": entry(
            {name: [float(values[number])] for name, values in own.items()},
            {
                "runtime": runtime,
                "batch": setting.batch,
                "length": setting.length,
                "new": setting.new,
                "device": place["device"] if runtime == PYTORCH else "cpu",
            },
        )
        for number, setting in enumerate(chosen)
    }


def graphs_in(folder: Path) -> list[Path]:
    """The exported graphs of a folder: its own, and those of the `onnx` folders that a recipe leaves in it."""
    places = [folder, folder / "onnx", *sorted(folder.glob("onnx-*"))]
    return [path for place in places if (path := place / "model.onnx").is_file()]


def _bounds(path: Path) -> dict[str, int]:
    """The positions and vocabulary that the config beside a graph states."""
    known = (path.parent / "config.json").is_file()
    return bounds(read_config(path.parent).get_text_config()) if known else {}
