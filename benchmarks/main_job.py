"""The main job's figures: command latencies, the walk beside a plain forward, and memory on a 1.35 B-parameter model.

    python benchmarks/main_job.py commands          # quickstart, --help, check
    python benchmarks/main_job.py walk              # one wanda step beside its physical parts
    python benchmarks/main_job.py memory            # 1.35 B parameters, streamed and resident, 12 and 24 layers

Both sides of a ratio run in one call, alternated; medians are printed with their spread. docs/benchmarks.md keeps the
figures with hardware and versions.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["commands", "walk", "memory", "child"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", nargs=3, metavar=("MODE", "MODEL", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.what == "child":
        return child(*arguments.child)
    print(machine())
    {"commands": commands, "walk": walk, "memory": memory}[arguments.what](arguments.repeats)
    return None


def machine() -> str:
    import torch
    import transformers

    return (
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__},"
        f" transformers {transformers.__version__}, Python {platform.python_version()}"
    )


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def show(name: str, seconds: list[float], bound: str = "") -> float:
    middle = statistics.median(seconds)
    print(f"{name:58} {middle:8.2f} s  [{min(seconds):.2f}, {max(seconds):.2f}]  {bound}")
    return middle


@contextmanager
def scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="prune-benchmark-", dir=os.environ.get("PRUNE_SCRATCH")))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def commands(repeats: int) -> None:
    """Whole processes, as a person starts them."""
    tool = str(Path(sys.executable).parent / "prune")
    recipe = str(ROOT / "recipes" / "quickstart.yaml")
    with scratch() as folder:

        def run(*arguments: str) -> None:
            subprocess.run([tool, *arguments], check=True, capture_output=True, cwd=folder)

        run("--help")  # once, for the file cache
        show("prune --help", [timed(lambda: run("--help")) for _ in range(max(repeats, 9))], "at most 0.3 s")
        show("prune check", [timed(lambda: run("check", recipe)) for _ in range(repeats)], "at most 5 s")
        quick = [timed(lambda i=i: run("apply", recipe, "--output", f"out{i}")) for i in range(repeats)]
        show("prune apply quickstart", quick, "at most 90 s")


def walk(repeats: int) -> None:
    """One step, channels and heads by wanda, beside the least it must do: read, forward, write."""
    import torch

    import prune
    from prune.files import sha256
    from prune.model.checkpoint import write_folder

    model = prune.open("bundled")
    data = prune.batches("python-docs", model.tokenizer(), samples=64, length=256, seed=0)
    module = prune.load("bundled", dtype=torch.float32)

    def step(out: Path) -> None:
        opened = prune.open("bundled")
        opened.fingerprint()
        found = prune.groups(opened, ["channels", "heads"])
        scores = prune.score(opened, found, data, criterion="wanda", dtype=torch.float32)
        prune.save(prune.cut(opened, prune.choose(opened, found, scores, ratio=0.25)), out)

    def parts(out: Path) -> None:
        for path in model.weights:
            sha256(path)
        with torch.no_grad():
            for batch in data:
                module(input_ids=batch["input_ids"], use_cache=False)
        out.mkdir()
        write_folder(small.tensors, out)
        for path in out.iterdir():
            sha256(path)

    found = prune.groups(model, ["channels", "heads"])
    small = prune.cut(model, {g.name: list(range(g.units * 3 // 4)) for g in found})
    with scratch() as folder:
        step(folder / "warm"), parts(folder / "warm-parts")
        ours, least = [], []
        for i in range(max(repeats, 5)):
            ours.append(timed(lambda i=i: step(folder / f"step{i}")))
            least.append(timed(lambda i=i: parts(folder / f"parts{i}")))
    ratio = show("one wanda step", ours) / show("reading, one forward, writing", least)
    print(f"{'ratio':58} {ratio:8.2f}    at most 1.5")


def memory(repeats: int) -> None:
    """A quarter of the channels by wanda, in processes of their own: streamed, and with the whole model resident."""
    with scratch() as folder:
        peaks: dict[str, list[float]] = {}
        seconds: dict[str, list[float]] = {}
        for layers in (12, 24):
            make_llama(folder / f"llama{layers}", layers)
        for _ in range(repeats):
            for mode, layers in (("stream", 12), ("stream", 24), ("resident", 24)):
                found = json.loads(run_child(mode, folder / f"llama{layers}", folder / "out"))
                shutil.rmtree(folder / "out")
                peaks.setdefault(f"{mode}, {layers} layers", []).append(found["peak_gib"])
                seconds.setdefault(f"{mode}, {layers} layers", []).append(found["seconds"])
    for name in peaks:
        show(name, seconds[name], f"peak {statistics.median(peaks[name]):.2f} GiB")
    ratio = statistics.median(seconds["stream, 24 layers"]) / statistics.median(seconds["resident, 24 layers"])
    print(f"{'streamed over resident':58} {ratio:8.2f}    at most 1.3; peak at most 1.0 GiB, the same at 12 and 24")


def run_child(mode: str, model: Path, out: Path) -> str:
    command = [sys.executable, __file__, "child", "--child", mode, str(model), str(out)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]


def child(mode: str, folder: str, out: str) -> None:
    """The work itself; prints its seconds and peak resident memory."""
    import torch

    import prune

    generator = torch.Generator().manual_seed(0)
    data = [{"input_ids": torch.randint(32000, (4, 128), generator=generator)} for _ in range(4)]
    start = time.perf_counter()
    model = prune.open(folder if mode == "stream" else prune.load(folder))
    found = prune.groups(model, "channels")
    scores = prune.score(model, found, data, criterion="wanda", dtype=torch.float32)
    plan = prune.choose(model, found, scores, ratio=0.25)
    small = prune.cut(model, plan)
    prune.prove(model, plan, small, {"input_ids": data[0]["input_ids"][:1, :64]})
    prune.save(small, out)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    print(json.dumps({"seconds": time.perf_counter() - start, "peak_gib": peak}))


def make_llama(folder: Path, layers: int) -> None:
    """A random bf16 Llama of width 2048 (1.35 B parameters at 24 layers), written tensor by tensor."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from prune.model.checkpoint import write_folder
    from prune.model.tensors import Info, Tensors

    config = LlamaConfig(
        hidden_size=2048, intermediate_size=5504, num_hidden_layers=layers, num_attention_heads=16, dtype="bfloat16"
    )
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in LlamaForCausalLM(config).state_dict().items()}

    def read(name: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(sum(name.encode()))
        if len(shapes[name]) == 1:
            return torch.ones(shapes[name], dtype=torch.bfloat16)
        return torch.empty(shapes[name], dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)

    folder.mkdir()
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    write_folder(Tensors({n: Info(s, torch.bfloat16) for n, s in shapes.items()}, read), folder)


if __name__ == "__main__":
    main()
