"""What refit costs beside the criterion alone: processor time on a model at hand, and peak memory on a large one.

    python benchmarks/refit_cost.py time MODEL TEXT [--samples 64] [--repeats 3]
    python benchmarks/refit_cost.py memory [--layers 6] [--tokens 2048]

`time` scores MODEL by Wanda on TEXT, cuts a quarter of its channels and heads, and does it again with refit (`target:
residual`, then `auto`), in turn; medians with lowest and highest. `memory` makes a random bfloat16 Llama of width 2048
and MLP 5504, and gives the peak resident memory of a child process that scores and cuts it, and of one that refits too;
beside the difference stands what one layer in float32 and the Grams of its output linears take.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))
RATIO = 0.25
WAYS: dict[str, str | None] = {"wanda": None, "wanda + refit (residual)": "residual", "wanda + refit (auto)": "auto"}


def job(model: Any, text: Any, target: str | None) -> Any:
    """A cut by Wanda, with or without refit: what the recipe step `remove` does, but for the proof and the writing."""
    import torch

    from prune.model.groups import groups
    from prune.model.overlay import Changes
    from prune.remove.at_once import Choosing, score_and_refit
    from prune.remove.choose import choose
    from prune.remove.cut import cut
    from prune.remove.score import score

    found = groups(model, ["channels", "heads"])
    if target is not None:
        choosing = Choosing("wanda", {}, {"ratio": RATIO})
        changes = Changes.large(model.tensors.bytes)
        return score_and_refit(model, found, text, choosing, target=target, changes=changes, dtype=torch.float32).model
    scores = score(model, found, text, criterion="wanda", dtype=torch.float32)
    return cut(model, choose(model, found, scores, ratio=RATIO))


def timing(arguments: argparse.Namespace) -> None:
    from main_job import machine
    from quality import parts

    import prune

    model = prune.open(arguments.model)
    text = prune.batches(
        parts(arguments.text)[0], model.tokenizer(), samples=arguments.samples, length=arguments.length, seed=0
    )
    job(model, text[:1], "residual")  # imports and first calls
    spent: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(arguments.repeats):
        for name, target in WAYS.items():
            start = time.process_time()
            job(model, text, target)
            spent[name].append(time.process_time() - start)
    print(f"{machine()}; {arguments.samples} windows of {arguments.length}\n")
    print("| | processor seconds | x wanda |\n| --- | --- | --- |")
    for name, seconds in spent.items():
        middle = statistics.median(seconds)
        times = middle / statistics.median(spent["wanda"])
        print(f"| {name} | {middle:.1f} [{min(seconds):.1f}, {max(seconds):.1f}] | {times:.2f} |")


def memory(arguments: argparse.Namespace) -> None:
    from main_job import machine, make_llama

    import prune

    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        make_llama(folder, arguments.layers)
        sizes = prune.open(folder)
        layer = sum(sizes.tensors.info[name].bytes for name in sizes.names(0)) * 2 / 2**20  # float32 of bfloat16
        command = [sys.executable, __file__, "child", str(folder), "--tokens", str(arguments.tokens), "--target"]
        peaks = {
            name: int(subprocess.run([*command, str(target)], check=True, capture_output=True, text=True).stdout)
            for name, target in WAYS.items()
            if target != "auto"
        }
    inner, width = 5504 * 3 // 4, 2048 * 3 // 4  # inputs of the two output linears after the cut
    grams = sum(inputs**2 * (8 if inputs <= 4096 else 4) for inputs in (inner, width)) / 2**20
    print(f"{machine()}; {arguments.layers} layers, {arguments.tokens} tokens\n")
    print("| | MiB |\n| --- | --- |")
    for name, peak in peaks.items():
        print(f"| peak, {name} | {peak / 2**10:.0f} |")
    more = (peaks["wanda + refit (residual)"] - peaks["wanda"]) / 2**10
    print(f"| difference | {more:.0f} |\n| one layer in float32 | {layer:.0f} |")
    print(f"| the Grams of its outputs | {grams:.0f} |")


def child(arguments: argparse.Namespace) -> None:
    """One way in a process of its own; prints its peak resident memory in KiB."""
    import prune
    from prune.labels import made_up

    model = prune.open(arguments.model)
    length = 512
    text = made_up(model, samples=arguments.tokens // length, length=length, seed=0)
    windows = [{name: value[i : i + 1] for name, value in text.items()} for i in range(arguments.tokens // length)]
    job(model, windows, None if arguments.target == "None" else arguments.target)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["time", "memory", "child"])
    parser.add_argument("model", nargs="?")
    parser.add_argument("text", nargs="?")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--target", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    {"time": timing, "memory": memory, "child": child}[arguments.what](arguments)


if __name__ == "__main__":
    main()
