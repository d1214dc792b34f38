"""Merging beside mergekit: wall time and peak memory of whole commands on a bf16 trio of 0.2 B parameters.

    python benchmarks/merge.py --peer /path/to/mergekit-env/bin/mergekit-yaml
    python benchmarks/merge.py --peer ... --methods ties slerp --repeats 3 --report

Both sides run in turn, each command in a process of its own that imports first and then notes how long the command
takes by itself; what earlier commands wrote is flushed before. Medians are printed. So is the floor: a process that
reads the same inputs, writes as many bytes as come out, flushes and hashes them, and computes nothing.
Since mergekit reports nothing, ours runs with `--no-report`; `--report` runs it a second time with the report.
docs/merging.md keeps the figures with hardware and versions.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

METHODS = ("linear", "slerp", "ties", "dare_ties", "passthrough")
SHAPE = {
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 14,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "tie_word_embeddings": True,
}
Measured = tuple[float, float, float, float]  # seconds after imports, with them, of processor; peak bytes
# What a process of either side runs: all that the command imports, then the command, under the clock.
TIMED = """
import sys, time
{imports}
began = time.perf_counter()
try:
    {call}
except SystemExit as end:
    assert not end.code, end.code
finally:
    print("seconds", time.perf_counter() - began, file=sys.stderr)
"""
OURS = TIMED.format(
    imports="import prune.recipe.merging\nfrom prune.cli import cli\nfrom transformers import LlamaForCausalLM",
    call="cli()",
)
PEER = TIMED.format(imports="from mergekit.scripts.run_yaml import main", call="main()")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="mergekit-yaml of another environment; without it only our side runs")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--report", action="store_true", help="also time our side with its report")
    parser.add_argument("--models", type=Path, help="where the trio lies, or is to be made and kept")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--floor", nargs=2, metavar=("INPUTS", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.floor:
        return floor(*arguments.floor)
    if arguments.make:
        return make(arguments.make)
    with tempfile.TemporaryDirectory(dir=os.environ.get("PRUNE_SCRATCH")) as scratch:
        models = arguments.models or Path(scratch, "models")
        # In a process of its own: a child's peak counts what its parent holds when it starts.
        subprocess.run([sys.executable, __file__, "--make", str(models)], check=True)
        print(machine())
        compare(models, Path(scratch), arguments)
    return None


def machine() -> str:
    return f"{os.cpu_count()} cores, torch {version('torch')}, transformers {version('transformers')}"


def make(folder: Path) -> None:
    """base, one and two: random weights, moved a little."""
    if (folder / "two").exists():
        return
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE)).to(torch.bfloat16)
    for number, name in enumerate(("base", "one", "two")):
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in model.parameters() if number else ():
                parameter += torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.002
        model.save_pretrained(folder / name)


def config(method: str, models: Path) -> dict[str, Any]:
    base, one, two = (str(models / name) for name in ("base", "one", "two"))
    found: dict[str, Any] = {"merge_method": method, "dtype": "bfloat16"}
    if method == "passthrough":
        return {**found, "slices": [{"sources": [{"model": one, "layer_range": [0, SHAPE["num_hidden_layers"]]}]}]}
    if method == "slerp":
        return {**found, "base_model": base, "models": [{"model": base}, {"model": one}], "parameters": {"t": 0.4}}
    weighted = [{"model": model, "parameters": {"weight": 0.5}} for model in (one, two)]
    if method == "linear":
        return {**found, "models": weighted}
    return {**found, "base_model": base, "models": weighted, "parameters": {"density": 0.5}}


def compare(models: Path, scratch: Path, arguments: argparse.Namespace) -> None:
    ours = [sys.executable, "-c", OURS, "merge", "-q"]
    print("seconds after imports, with them, of processor, peak")
    for method in arguments.methods:
        source = scratch / f"{method}.yml"
        values = config(method, models)
        source.write_text(yaml.safe_dump(values))
        used = ",".join(sorted({word for word in source.read_text().split() if word.startswith(str(models))}))
        sides: dict[str, list[str]] = {"floor": [sys.executable, __file__, "--floor", used]}
        if arguments.peer:
            sides["mergekit"] = [str(Path(arguments.peer).parent / "python"), "-c", PEER, str(source)]
        sides["ours"] = [*ours, "--no-report", str(source)]
        if arguments.report:
            sides["ours, with report"] = [*ours, str(source)]
        found: dict[str, list[Measured]] = {name: [] for name in sides}
        for _ in range(arguments.repeats):
            for name, command in sides.items():
                out = scratch / "out"
                more = ["--quiet", "--random-seed", "1"] if name == "mergekit" else []
                found[name].append(run([*command, str(out), *more]))
                shutil.rmtree(out, ignore_errors=True)
        for name, measured in found.items():
            print(line(f"{method}, {name}", measured), flush=True)


def run(command: list[str]) -> Measured:
    """A command's seconds after its imports and with them, those of its processors, and its peak of resident memory."""
    os.sync()
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    whole = time.perf_counter() - began
    assert status == 0, (command, said[-1000:])
    (own,) = (text.removeprefix("seconds ") for text in said.splitlines() if text.startswith("seconds "))
    return float(own), whole, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def line(name: str, measured: list[Measured]) -> str:
    own, whole, processor, peaks = (statistics.median(column) for column in zip(*measured, strict=True))
    spread = f"[{min(one[0] for one in measured):.2f}, {max(one[0] for one in measured):.2f}]"
    return f"{name:24} {own:7.2f} s {spread:15} {whole:7.2f} s {processor:7.2f} s {peaks / 1e9:6.2f} GB"


def floor(inputs: str, out: str) -> None:
    """Reads every input, writes as many bytes as one of them has, flushes and hashes them."""
    began = time.perf_counter()
    place, size, digest = Path(out), 0, hashlib.sha256()
    place.mkdir()
    buffer = bytearray(2**22)
    for folder in inputs.split(","):
        with Path(folder, "model.safetensors").open("rb", buffering=0) as file:
            size = 0
            while count := file.readinto(buffer):
                size += count
    with (place / "model.safetensors").open("wb", buffering=0) as file:
        for start in range(0, size, len(buffer)):
            chunk = memoryview(buffer)[: min(len(buffer), size - start)]
            file.write(chunk)
            digest.update(chunk)
        os.fsync(file.fileno())
    print("seconds", time.perf_counter() - began, file=sys.stderr)


if __name__ == "__main__":
    main()
