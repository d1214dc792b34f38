"""How good training-free cuts are: excess loss beside FLAP's, as a Markdown table, medians over calibration seeds.

    python benchmarks/quality.py MODEL TEXT [--calibrate TEXT] [--ratios 0.25 0.5] [--seeds 0 1 2] [--methods ...]

MODEL is a folder or "bundled", TEXT a .jsonl or .txt file or "python-docs". The first half of a file's documents is
calibrated on; the third quarter is for trying things out (--part development), and what is reported is measured on the
last (--part report). python-docs has two parts of its own. Channels and heads are removed together, as much from every
layer; with --budgets, so much that this share of the parameters stays, shared out alike or by layer. Excess loss is
log(perplexity of the cut model / perplexity of the uncut one).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import prune
from prune.model.groups import groups
from prune.remove.choose import choose
from prune.remove.compensate import compensate
from prune.remove.cut import cut
from prune.remove.refit import refit
from prune.remove.within import Search, within

RESIDUAL = {"target": "residual"}
METHODS: dict[str, tuple[str, str, dict[str, Any]]] = {  # name -> criterion, what mends the cut, options
    "magnitude": ("magnitude", "", {}),
    "wanda": ("wanda", "", {}),
    "flap + bias": ("flap", "bias", {}),
    "obs + update": ("obs", "weights", {}),
    "wanda + refit (auto)": ("wanda", "refit", {"target": "auto"}),
    "wanda + refit (dense)": ("wanda", "refit", {"target": "dense"}),
    "wanda + refit (pruned)": ("wanda", "refit", {"target": "pruned"}),
    "wanda + refit (residual)": ("wanda", "refit", RESIDUAL),
    "obs + refit": ("obs", "refit", RESIDUAL),
    "obs + refit all": ("obs", "refit", {**RESIDUAL, "linears": "all"}),
    "obs + refit all, 2 rounds": ("obs", "refit", {**RESIDUAL, "linears": "all", "rounds": 2}),
}
LAYERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "redundancy": ("redundancy", "", {}),
    "redundancy + fold": ("redundancy", "refit", {"fold_only": True}),
    "redundancy + refit": ("redundancy", "refit", RESIDUAL),
    "kl": ("kl", "", {}),
    "kl + fold": ("kl", "refit", {"fold_only": True}),
    "kl + refit all": ("kl", "refit", {**RESIDUAL, "linears": "all"}),
}
BUDGETS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "uniform": ("obs", "uniform", RESIDUAL),
    "by layer": ("obs", "by layer", RESIDUAL),
    "uniform, refit all": ("obs", "uniform", {**RESIDUAL, "linears": "all"}),
    "by layer, refit all": ("obs", "by layer", {**RESIDUAL, "linears": "all"}),
}
BASELINE = "flap + bias"


def parts(source: str, part: str = "report") -> tuple[Any, Any]:
    """Text to calibrate on and text to measure on, disjoint."""
    if source == "python-docs":
        return source, source
    lines = Path(source).read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines] if source.endswith(".jsonl") else ["\n".join(lines)]
    half, quarter = len(texts) // 2, 3 * len(texts) // 4
    return texts[:half], texts[half:quarter] if part == "development" else texts[quarter:]


def made(model: prune.Model, text: list, method: tuple[str, str, dict], amount: dict[str, Any]) -> prune.Model:
    """The model cut by a method."""
    criterion, mend, options = method
    if "budget" in amount:
        found = groups(model, ["channels", "heads"])
        scores = prune.score(model, found, text, criterion=criterion, dtype=torch.float32)
        search = Search(options, place={"dtype": torch.float32}, opens=options.get("intercept", True))
        uniform = mend == "uniform"
        plan = within(model, found, scores, text, amount["budget"], search, exact=criterion == "obs", uniform=uniform)
        print(f"# {search.record}")
        return refit(model, plan, text, dtype=torch.float32, **options)
    kinds = ["layers"] if "count" in amount else ["channels", "heads"]
    found = groups(model, kinds)
    settings = {"rounds": amount["count"]} if criterion == "kl" else {}
    scores = prune.score(model, found, text, criterion=criterion, dtype=torch.float32, **settings)
    plan = choose(model, found, scores, **amount)
    if mend == "refit":
        return refit(model, plan, text, dtype=torch.float32, **options)
    return compensate(model, plan, text, how=mend, dtype=torch.float32) if mend else cut(model, plan)


def table(arguments: argparse.Namespace, amount: dict[str, Any], methods: dict[str, Any]) -> list[str]:
    """The rows of one table: perplexity, excess loss, its multiple of the baseline's, seconds; medians."""
    model = prune.open(arguments.model)
    tokenizer = model.tokenizer()
    calibration = parts(arguments.calibrate or arguments.text)[0]
    test = prune.windows(
        parts(arguments.text, arguments.part)[1], tokenizer, length=arguments.length, samples=arguments.windows
    )
    dense = prune.perplexity(model, test, dtype=torch.float32)
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in arguments.seeds:
        text = prune.batches(calibration, tokenizer, samples=arguments.samples, length=arguments.length, seed=seed)
        for name, method in methods.items():
            start = time.perf_counter()
            small = made(model, text, method, amount)
            spent = time.perf_counter() - start
            excess = prune.perplexity(small, test, dtype=torch.float32)["loss"] - dense["loss"]
            found.setdefault(name, []).append((excess, spent))
            print(f"# {amount} seed {seed} {name}: {excess:.4f} in {spent:.0f} s", flush=True)
    middle = {name: statistics.median(excess for excess, _ in runs) for name, runs in found.items()}
    unit = middle.get(BASELINE, middle.get("redundancy", middle.get("uniform", float("nan"))))
    rows = [f"dense perplexity {dense['perplexity']:.2f} over {dense['tokens']} tokens; removed {amount}", ""]
    rows += ["| method | perplexity | excess loss | x baseline | seconds |", "| --- | --- | --- | --- | --- |"]
    for name, excess in middle.items():
        seconds = statistics.median(spent for _, spent in found[name])
        ppl = dense["perplexity"] * 2.718281828459045**excess
        rows.append(f"| {name} | {ppl:.2f} | {excess:.3f} | {excess / unit:.3f} | {seconds:.0f} |")
    return [*rows, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--calibrate", help="calibrate on the first half of this text instead")
    parser.add_argument("--ratios", type=float, nargs="*", default=[0.25, 0.5])
    parser.add_argument("--layers", type=int, nargs="*", default=[], help="drop so many layers instead")
    parser.add_argument("--budgets", type=float, nargs="*", default=[], help="leave this share of the parameters")
    parser.add_argument("--part", choices=["report", "development"], default="report")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--windows", type=int, default=48, help="windows to measure on; stride is the length")
    parser.add_argument("--methods", nargs="*", help="names of methods; all when left out")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = [f"{arguments.model}, {arguments.text}, calibrated on {arguments.calibrate or 'its first half'}:"]
    rows += [f"{arguments.samples} x {arguments.length} tokens, seeds {arguments.seeds}", ""]
    rows += [f"measured on the {arguments.part} part, windows and stride of {arguments.length}", ""]
    wanted = arguments.methods or [*METHODS, *LAYERS, *BUDGETS]
    for ratio in arguments.ratios:
        rows += table(arguments, {"ratio": ratio}, {name: METHODS[name] for name in METHODS if name in wanted})
    for count in arguments.layers:
        rows += table(arguments, {"count": count}, {name: LAYERS[name] for name in LAYERS if name in wanted})
    for share in arguments.budgets:
        amount = {"budget": {"params": share}}
        rows += table(arguments, amount, {name: BUDGETS[name] for name in BUDGETS if name in wanted})
    print("\n".join(rows))


if __name__ == "__main__":
    main()
