"""Deployment's figures: latency of a pruned model against the dense one, int8's bytes and perplexity, time to export.

    export OMP_NUM_THREADS=1                # as the figures were measured
    python benchmarks/deploy.py latency     # 298 M parameters, random: PyTorch and ONNX Runtime, prefill and decode
    python benchmarks/deploy.py int8        # the bundled model: bytes and perplexity of each dtype
    python benchmarks/deploy.py export      # the bundled model to ONNX, whole processes, 3 at most

Both sides of a ratio run in one call, alternated; medians are printed with their spread. docs/deployment.md keeps the
figures with hardware and versions.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

LAYERS, WIDTH, CHANNELS, HEADS = 6, 2048, 5632, 32
PREFILL, CONTEXT = 128, 128  # tokens of a prompt, and tokens in the cache while one more is decoded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["latency", "int8", "export"])
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="prune-benchmark-") as folder:
        {"latency": latency, "int8": int8, "export": export}[arguments.what](Path(folder), arguments.repeats)


def dense() -> Any:
    """A random Llama: 6 layers as wide as those of a model of 1.1 billion parameters (width 2048, MLPs of 5632)."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=WIDTH,
        intermediate_size=CHANNELS,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 8,
        head_dim=WIDTH // HEADS,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


def latency(folder: Path, repeats: int) -> None:
    """Half of the channels and of the heads gone, in every layer."""
    import torch

    import prune
    from prune.measure import flops_per_token
    from prune.model.graph import open_graph

    opened = prune.open(dense())
    groups = prune.groups(opened, ["channels", "heads"])
    small = prune.cut(opened, {group.name: list(range(group.units // 2)) for group in groups})
    models = {"dense": opened, "pruned": small}
    work = {name: flops_per_token(model, CONTEXT) for name, model in models.items()}
    print(f"parameters: {opened.tensors.parameters:,} and {small.tensors.parameters:,}")
    ratio = work["dense"] / work["pruned"]
    print(
        f"FLOPs a token: {work['dense']:,} and {work['pruned']:,}, ratio {ratio:.2f}; {torch.get_num_threads()} threads"
    )
    calls = {name: torch_calls(prune.load(model, dtype=torch.float32).eval()) for name, model in models.items()}
    compare("PyTorch", calls, ratio, repeats)
    calls.clear()
    graphs = {}
    for name, model in models.items():
        record = prune.export(model, folder / name)
        print(f"{name}: graph within {record['parity']['max_difference']:.1e} of PyTorch")
        graphs[name] = graph_calls(open_graph(folder / name / "model.onnx"))
    compare("ONNX Runtime", graphs, ratio, repeats)


def torch_calls(module: Any) -> dict[str, Callable[[], Any]]:
    import torch

    from prune.model.caching import cache_argument, cache_of

    ids = torch.zeros(1, PREFILL, dtype=torch.long)
    with torch.inference_mode():
        filled = cache_of(module(ids[:, :CONTEXT], use_cache=True))

    def prefill() -> None:
        with torch.inference_mode():
            module(ids, use_cache=True)

    def decode() -> None:
        with torch.inference_mode():
            module(ids[:, :1], use_cache=True, **{cache_argument(module): filled})
            filled.crop(-1)

    return {"prefill": prefill, "decode": decode}


def graph_calls(session: Any) -> dict[str, Callable[[], Any]]:
    import torch

    from prune.model.graph import run_graph

    ids, mask = torch.zeros(1, PREFILL, dtype=torch.long), torch.ones(1, CONTEXT + 1, dtype=torch.long)
    _, past = run_graph(session, ids[:, :CONTEXT], mask[:, :CONTEXT])
    return {
        "prefill": lambda: run_graph(session, ids, mask[:, :PREFILL]),
        "decode": lambda: run_graph(session, ids[:, :1], mask, past),
    }


def compare(where: str, calls: dict[str, dict[str, Callable[[], Any]]], flops: float, repeats: int) -> None:
    for kind in ("prefill", "decode"):
        inner = 1 if kind == "prefill" else 8
        taken: dict[str, list[float]] = {name: [] for name in calls}
        for name in calls:
            calls[name][kind]()  # warm
        for _ in range(repeats):
            for name in calls:
                taken[name].append(timed(calls[name][kind], inner))
        gains = [one / other for one, other in zip(taken["dense"], taken["pruned"], strict=True)]
        middle = {name: statistics.median(own) * 1000 for name, own in taken.items()}
        gain = statistics.median(gains)
        print(
            f"{where}, {kind}: {middle['dense']:.1f} ms and {middle['pruned']:.1f} ms, {gain:.2f} x"
            f" [{min(gains):.2f}, {max(gains):.2f}], {gain / flops:.2f} of the FLOP ratio (at least 0.9)"
        )


def timed(call: Callable[[], Any], inner: int) -> float:
    start = time.perf_counter()
    for _ in range(inner):
        call()
    return (time.perf_counter() - start) / inner


def int8(folder: Path, _: int) -> None:
    import prune

    sizes: dict[str, int] = {}
    model = prune.open("bundled")
    for name, options in {"fp32": {}, "fp16": {"dtype": "fp16"}, "int8": {"dtype": "int8"}}.items():
        record = prune.export(model, folder / name, **options)
        sizes[name] = record["files"]["model.onnx"]
        parity, change = record["parity"], record.get("perplexity_change", {})
        cost = (
            f"; perplexity {change['before']:.3f} -> {change['after']:.3f} on {change['tokens']} tokens"
            if change
            else ""
        )
        equal, total = parity["greedy_tokens"]
        print(
            f"{name}: {sizes[name]:,} bytes, {sizes[name] / sizes['fp32']:.3f} of fp32; largest difference"
            f" {parity['max_difference']:.1e}; greedy tokens {equal} of {total}{cost}"
        )


def export(folder: Path, repeats: int) -> None:
    tool = str(Path(sys.executable).parent / "prune")
    seconds, cpu = [], []
    for number in range(min(repeats, 3)):
        before, start = os.times(), time.perf_counter()
        subprocess.run([tool, "export", "bundled", str(folder / f"out{number}"), "-q"], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
        after = os.times()
        cpu.append(after.children_user + after.children_system - before.children_user - before.children_system)
    print(f"prune export bundled: {show(seconds)} s, CPU {show(cpu)} s (under 20)")


def show(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} [{min(values):.1f}, {max(values):.1f}]"


if __name__ == "__main__":
    main()
