"""Tiny fine-tunes of one base, and merges of them that mergekit was asked for too: golden.json holds its answers."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import prune
from prune.model.checkpoint import write_folder
from tests.tiny import tiny_model

GOLDEN = Path(__file__).with_name("golden.json")
SEED = 7
SEVEN = ("linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties", "passthrough")
MORE = (
    "breadcrumbs",
    "breadcrumbs_ties",
    "della",
    "della_linear",
    "model_stock",
    "nuslerp",
    "multislerp",
    "karcher",
    "sce",
    "nearswap",
    "arcee_fusion",
)
KINDS = ("plain", "tied", "shards")
LARGE = 30011  # tokens: embeddings of more than 2^20 entries, where sums are made of parts
CASES = [
    *((method, kind, dtype) for method in SEVEN for kind in KINDS for dtype in ("float32", "bfloat16")),
    *((method, "plain", "float32") for method in MORE),
    ("slerp", "large", "float32"),
]


def name(case: tuple[str, str, str]) -> str:
    return "-".join(case)


def trio(folder: Path, kind: str, dtype: str) -> Path:
    """base, one and two: the same random model, twice moved a little, in folders of these names."""
    for number, member in enumerate(("base", "one", "two")):
        sizes = {"vocab_size": LARGE} if kind == "large" else {}
        tied = kind in ("tied", "large")
        module = tiny_model("llama", dtype=getattr(torch, dtype), tie_word_embeddings=tied, **sizes)
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in module.parameters() if number else ():
                parameter.add_((torch.randn(parameter.shape, generator=generator) * 0.05).to(parameter.dtype))
        model = prune.open(module)
        prune.save(model, folder / member)
        if kind == "shards":
            (folder / member / "model.safetensors").unlink()
            write_folder(model.tensors, folder / member, shard_bytes=model.tensors.bytes // 2)
    return folder


def config(method: str, folder: Path, dtype: str) -> dict[str, Any]:
    """A merge of the three with gradients and filters."""
    base, one, two = (str(folder / member) for member in ("base", "one", "two"))
    found: dict[str, Any] = {"merge_method": method, "dtype": dtype}
    if method == "passthrough":
        first = {"sources": [{"model": one, "layer_range": [0, 2]}]}
        second = {"sources": [{"model": two, "layer_range": [1, 3], "parameters": {"scale": SCALE}}]}
        return {**found, "slices": [first, second]}
    if method == "karcher":
        return {**found, "models": [{"model": one}, {"model": two}]}
    if method == "linear":
        return {**found, "models": [weighted(one, 0.3), weighted(two, [0.2, 0.9])]}
    found["base_model"] = base
    if method in ("slerp", "nearswap", "arcee_fusion"):
        values = {"slerp": {"t": SLERP}, "nearswap": {"t": 0.02}, "arcee_fusion": {}}[method]
        return {**found, "models": [{"model": base}, {"model": one}], "parameters": values}
    if method in ("model_stock", "sce"):
        values = {"select_topk": 0.5} if method == "sce" else {}
        return {**found, "models": [{"model": one}, {"model": two}], "parameters": values}
    found["models"] = [weighted(one, 0.3), weighted(two, 0.9)]
    if method in ("nuslerp", "multislerp"):
        return found
    found["models"][1]["parameters"]["weight"] = [{"filter": "mlp", "value": [0.5, 0.2]}, {"value": 0.6}]
    found["parameters"] = {"lambda": 0.9}
    if method != "task_arithmetic":
        found["parameters"]["density"] = 0.4
    return found


SCALE = [{"filter": "o_proj", "value": 0.5}, {"filter": "down_proj", "value": [0.5, 0.25]}, {"value": 1.0}]
SLERP = [{"filter": "mlp", "value": [0, 0.3, 1]}, {"filter": "q_proj", "value": 1.0}, {"value": 0.4}]


def weighted(model: str, weight: Any) -> dict[str, Any]:
    return {"model": model, "parameters": {"weight": weight}}


def fingerprint(tensors: dict[str, Tensor]) -> dict[str, list[float]]:
    """A few entries of a few tensors."""
    chosen = [key for key in sorted(tensors) if "embed" in key or "lm_head" in key or ".1." in key][::2]
    return {key: [float(tensors[key].reshape(-1)[place]) for place in (0, 7, 31)] for key in chosen}


@cache
def golden() -> dict[str, dict[str, list[float]]]:
    found: dict[str, dict[str, list[float]]] = json.loads(GOLDEN.read_text())
    return found


def adapter(folder: Path, *, rank: int = 4, alpha: float = 6.0, **more: Any) -> dict[str, Tensor]:
    """A random LoRA adapter for the tiny Llama's q_proj and down_proj; gives its tensors."""
    generator = torch.Generator().manual_seed(3)
    shapes = {"self_attn.q_proj": (48, 48), "mlp.down_proj": (48, 40)}
    tensors = {}
    for layer in range(3):
        for module, (rows, columns) in shapes.items():
            start = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{start}.lora_A.weight"] = torch.randn(rank, columns, generator=generator) * 0.1
            tensors[f"{start}.lora_B.weight"] = torch.randn(rows, rank, generator=generator) * 0.1
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    values = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": ["q_proj", "down_proj"], **more}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    return tensors
