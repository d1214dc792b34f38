"""A run that did everything a report can show, made up; `mark` is appended to every text that may come from outside."""

from __future__ import annotations

import math
from typing import Any

STEM = ["biology", "chemistry", "civil_engineering", "computer_science", "ecology", "electrical_engineering"]
STEM += ["information_technology", "materials_engineering", "math", "mechanical_engineering", "physics"]
HUMSS = ["accounting", "criminal_law", "economics", "education", "korean_history", "law", "management"]
HUMSS += ["political_science_and_sociology", "psychology", "social_welfare", "taxation"]
LAYERS, HEADS, KV, CHANNELS, EXPERTS = 8, 8, 4, 256, 4


def shape(layers: list[int], heads: list[int], kv: list[int], channels: list[int], experts: int = 0) -> dict[str, Any]:
    return {
        "width": 64,
        "head_dim": 8,
        "heads": [heads[n] for n in layers],
        "kv_heads": [kv[n] for n in layers],
        "channels": [0 if experts else channels[n] for n in layers],
        "experts": [experts for _ in layers],
        "expert_channels": [channels[n] if experts else 0 for n in layers],
    }


def everything(mark: str = "", *, uniform: bool = False) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The content of prune.json, and the timings of its steps."""
    every = list(range(LAYERS))
    whole = shape(every, [HEADS] * LAYERS, [KV] * LAYERS, [CHANNELS] * LAYERS)
    kept_kv = [3] * LAYERS if uniform else [3, 4, 2, 3, 3, 2, 4, 3]
    kept_channels = [192] * LAYERS if uniform else [224, 256, 160, 128, 192, 160, 208, 256]
    plan = {f"layers.{n}.heads": [u for u in range(KV) if (u + n) % KV < kept_kv[n]] for n in every}
    plan |= {f"layers.{n}.channels": list(range(CHANNELS - kept_channels[n], CHANNELS)) for n in every}
    cut = shape(every, [2 * n for n in kept_kv], kept_kv, kept_channels)
    left = [n for n in every if n != 5]
    shallow = shape(left, [2 * n for n in kept_kv], kept_kv, kept_channels)
    steps = [
        _merge(mark),
        _remove(mark, 1, [whole, cut], plan, _scores(plan, kept_channels)),
        _remove(mark, 2, [cut, shallow], {"layers": left}, _layer_scores(left)),
        _evaluate(mark, 19.6, False),
        _distill(mark),
        _evaluate(mark, 9.4, True),
        _synthesis(mark),
        {
            "word": "export",
            "options": {"format": "onnx"},
            "record": {
                "format": "onnx",
                "files": {"model.onnx": 400},
                "parity": {"max_difference": 1e-6, "worst": f"row 0{mark}"},
            },
            "warnings": [],
        },
    ]
    manifest = {
        "format": "prune-output",
        "format_version": 1,
        "recipe": {
            "model": f"models/tiny{mark}",
            "calibration": {"data": f"text.jsonl{mark}", "samples": 64, "length": 256},
            "steps": [
                {"remove": {"what": ["channels", "heads"], "ratio": 0.25}},
                {"evaluate": {"perplexity": f"x{mark}"}},
            ],
        },
        "model": {"source": f"org/tiny{mark}", "revision": None, "files": {f"config.json{mark}": "ab" * 32}},
        "seed": 0,
        "device": f"cpu{mark}",
        "dtype": "auto",
        "versions": {"prune": f"0.1.0{mark}", "python": "3.11", "torch": "2.13"},
        "runtimes": [
            {"runtime": f"transformers{mark}", "verdict": "loads", "why": f"stock{mark}", "source": f"its code{mark}"},
            {"runtime": "vLLM", "verdict": "will not", "why": "layers differ", "source": ""},
        ],
        "files": {f"model.safetensors{mark}": "cd" * 32},
        "steps": steps,
    }
    return manifest, [_timing(number, mark) for number in range(len(steps))]


def _remove(mark: str, number: int, shapes: list[Any], plan: dict[str, Any], scores: dict[str, Any]) -> dict[str, Any]:
    sizes = [3_200_000, 2_300_000, 2_000_000]
    return {
        "word": "remove",
        "options": {"what": ["channels"], "plan": None},
        "record": {
            "criterion": f"wanda{mark}" if number == 1 else f"redundancy{mark}",
            "removed": {f"channels{mark}": f"some of 256{mark}"} if number == 1 else {"layers": f"1 of 8: 5{mark}"},
            "parameters": sizes[number - 1 : number + 1],
            "bytes": [4 * n for n in sizes[number - 1 : number + 1]],
            "plan": plan,
            "shape": shapes,
            "scores": scores,
            "saved_as": f"prune_llama{mark}",
            "refit": {
                "target": "dense",
                "dampings": {f"layers.0.mlp.down_proj{mark}": 0.1, "layers.1.mlp.down_proj": 1e-4},
                "raised": ["layers.1.mlp.down_proj"],
            },
            "notes": [f"saved as prune_llama: layers differ{mark}"],
            "proof": {"max_relative_difference": 4.1e-7, "tolerance": 1e-4, "layers": 8, "tokens": 128},
        },
        "warnings": [f"a warning{mark}"],
    }


def _scores(plan: dict[str, Any], kept_channels: list[int]) -> dict[str, Any]:
    layers = list(range(LAYERS))
    bins = [[0.2 + (n + 1) * (b / 64) ** 2 for b in range(64)] for n in layers]
    shares = [[float(b >= 64 - kept_channels[n] / 4) for b in range(64)] for n in layers]
    heads = [[float(u in plan[f"layers.{n}.heads"]) for u in range(KV)] for n in layers]
    means = [[1 + math.sin(3 * n + u) / 2 for u in range(KV)] for n in layers]
    channels = {"order": "score", "layers": layers, "units": [CHANNELS] * LAYERS, "mean": bins, "kept": shares}
    return {
        "channels": channels,
        "heads": {"order": "unit", "layers": layers, "units": [KV] * LAYERS, "mean": means, "kept": heads},
    }


def _layer_scores(left: list[int]) -> dict[str, Any]:
    mean = [[1.2, 0.3, 0.2, 0.2, 0.15, 0.05, 0.2, None]]
    kept = [[float(n in left) for n in range(LAYERS)]]
    return {"layers": {"order": "unit", "layers": [None], "units": [LAYERS], "mean": mean, "kept": kept}}


def _evaluate(mark: str, after: float, tasks: bool) -> dict[str, Any]:
    record: dict[str, Any] = {
        "perplexity": {
            "data": {"data": f"python-docs{mark}", "split": "heldout"},
            "length": 256,
            "stride": 255,
            "tokens": 16320,
            "before": 7.1,
            "after": after,
        }
    }
    if tasks:
        record["tasks"] = {"before": _tasks(mark, 0.03), "after": _tasks(mark, 0.0)}
        record["generations"] = [
            {
                "prompt": f"def read(path):\n{mark}",
                "before": f"    with open(path) as file:\n        return file.read(){mark}",
                "after": f"    return open(path).read(){mark}",
            },
            {"prompt": f"대한민국의 수도는{mark}", "before": f"서울입니다.{mark}", "after": f"부산입니다.{mark}"},
        ]
    return {"word": "evaluate", "options": {"perplexity": "python-docs"}, "record": record, "warnings": []}


def _tasks(mark: str, better: float) -> dict[str, Any]:
    subjects = {
        f"{name}{mark}": {"correct": int(200 * (0.24 + 0.2 * abs(math.sin(number)) + better)), "questions": 200}
        for number, name in enumerate(STEM + HUMSS)
    }
    micro = sum(entry["correct"] for entry in subjects.values()) / (200 * len(subjects))
    listed = {"STEM": STEM, "HUMSS": HUMSS}
    groups = {
        f"{group}{mark}": {"micro": micro, "macro": micro, "subjects": [f"{n}{mark}" for n in own]}
        for group, own in listed.items()
    }
    kmmlu = {"shots": 5, "micro": micro, "macro": micro, "majority": 0.305, "groups": groups, "subjects": subjects}
    return {"kmmlu": kmmlu, f"hellaswag{mark}": {f"acc{mark}": 0.31 + better, "acc_norm": 0.35}}


def _distill(mark: str) -> dict[str, Any]:
    curve = [
        {
            "step": step,
            "loss": 2.2 + 1.3 * math.exp(-step / 40) + 0.05 * math.sin(step),
            "held_out": 2.3 + 1.2 * math.exp(-step / 40) if step % 20 == 0 else None,
        }
        for step in range(0, 201, 2)
    ]
    record = {"curve": curve, "before": 3.5, "after": 2.31, "best_step": 180, "tokens": 410_000, "kept_start": False}
    record["parts"] = {f"logits{mark}": 0.31, f"hidden{mark}": f"x{mark}"}
    options = {"loss": f"logits{mark}"}
    return {"word": "distill", "options": options, "record": {"training": record}, "warnings": [f"short{mark}"]}


def _merge(mark: str) -> dict[str, Any]:
    names = [f"org/one{mark}", f"org/two{mark}"]
    layers = [
        {
            "layer": n,
            "delta_norm": {names[0]: 1 + n / 4, names[1]: 2 - n / 8},
            "cosine": 0.3 + n / 30,
            "sign_conflicts": 0.4 - n / 40,
        }
        for n in range(LAYERS)
    ]
    record = {"method": f"ties{mark}", "inputs": names, "base": f"org/base{mark}", "layers": layers}
    return {"word": "merge", "options": {}, "record": {"merge": record}, "warnings": []}


def _synthesis(mark: str) -> dict[str, Any]:
    record = {
        "kept": 812,
        "rejected": {f"equal{mark}": 61, f"sorry{mark}": 12, "leak": 5, "copies": 33},
        "rounds": [
            {"round": 0, "attempted": 400, "kept": 371, "words": 12.25, "difficulty": [None, None]},
            {"round": 1, "attempted": 500, "kept": 441, "difficulty": [3.0, 5.5], "truncated_answers": 2},
        ],
        "coverage": {
            "skills": [f"writing{mark}", "code"],
            "difficulties": ["easy", f"hard{mark}"],
            "seeds": [[4, 0], [3, 1]],
            "kept": [[300, 120], [200, 192]],
            "topics": {f"maths{mark}": 40, "code": 31},
        },
    }
    return {"word": "synthesize", "options": {}, "record": {"synthesis": record}, "warnings": []}


def _timing(number: int, mark: str) -> dict[str, Any]:
    timing: dict[str, Any] = {"seconds": 3.5 + number}
    if number == 4:
        timing["tokens_per_second"] = 5200.0
    if number == 5:
        of = {"runtime": "PyTorch", "batch": 1, "length": 256, "rounds": 20, "device": f"cpu{mark}", "threads": 1}
        graph = {**of, "runtime": "ONNX Runtime"}
        timing["speed"] = {
            "prefill": {"before": 0.08, "after": 0.05, "ratio": 0.63, "spread": [0.6, 0.66], "of": of},
            "decode": {"before": 81.0, "after": 118.0, "ratio": 1.46, "spread": [1.4, 1.5], "of": of},
            "prefill, ONNX Runtime": {"before": 0.05, "after": 0.03, "ratio": 0.61, "spread": [0.6, 0.62], "of": graph},
            "memory": {"before": 1.4e7, "after": 9e6, "ratio": 0.64, "of": of},
        }
        timing["latency_seconds"], timing["latency_ratio"] = [0.08, 0.05], 0.63
        timing["latency_of"] = {"batch": 1, "length": 256, "rounds": 20, "device": f"cpu{mark}"}
    return timing
