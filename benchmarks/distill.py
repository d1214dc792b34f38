"""Distillation beside TRL's trainers (tokens/s, peak memory), and how much of a cut's loss it wins back.

    python benchmarks/distill.py speed [--device cuda] [--repeats 3]
    python benchmarks/distill.py recovery [--steps 200] [--ratio 0.5] [--length 256]

speed: the same student, teacher, windows, batch and dtype on every side, each in a process of its own, alternated.
TRL's newest trainer writes its completions itself; it is given the windows as its completions, so that it only learns.
On a GPU the student has about 0.5 billion parameters, and a batch is eight windows. The utilisation is tokens/s x
(6 student + 2 teacher parameters) / the device's FLOP/s in matrix products, measured.
recovery: the bundled model without half its channels and heads, by wanda, trained with and without its teacher.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, TrainerCallback

import prune
from prune.measure import flops_per_second
from prune.progress import Progress
from prune.recovery.logits import Logits
from prune.recovery.settings import Optimizer, Training

SIDES = ("ours", "gkd", "distillation")
SIZES = {  # hidden, layers, MLP, heads of student and teacher
    "cpu": ((256, 4, 688, 4), (384, 6, 1024, 6)),
    "cuda": ((1024, 24, 4096, 16), (2048, 24, 5504, 16)),
}
VOCABULARY, LENGTH = 32_000, 1024


def model(size: tuple[int, int, int, int], seed: int) -> Any:
    hidden, layers, wide, heads = size
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=wide,
        num_attention_heads=heads,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
        pad_token_id=0,
        use_cache=False,
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


Time = tuple[float, float]  # of the wall's clock, and of this process's work


def now() -> Time:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


class Clock(Progress):
    """When each step ended."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.times: list[Time] = []

    @contextmanager
    def track(self, *_: Any) -> Iterator[Any]:  # type: ignore[override]
        yield lambda *_: self.times.append(now())


class Ticks(TrainerCallback):
    def __init__(self) -> None:
        self.times: list[Time] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.times.append(now())


def side(name: str, device: str, steps: int, batch: int) -> dict[str, float]:
    """Trains some steps in this process: tokens per second of the clock and of its own work, and bytes at the peak."""
    sizes = SIZES[device]
    student, teacher = model(sizes[0], 0), model(sizes[1], 1)
    if device == "cuda":
        teacher.bfloat16()  # what every side computes its teacher in
    ids = torch.randint(3, VOCABULARY, (batch * steps, LENGTH), generator=torch.Generator().manual_seed(0))
    times = {"ours": ours, "gkd": gkd, "distillation": distillation}[name](student, teacher, ids, device, steps, batch)
    # The last step of ours looks at held-out text too.
    wall, work = (end - start for end, start in zip(times[-2], times[0], strict=True))
    tokens = (len(times) - 2) * batch * LENGTH
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else resident
    counts = [sum(p.numel() for p in m.parameters()) for m in (student, teacher)]
    return {
        "speed": tokens / wall,
        "work": tokens / work,
        "peak": peak,
        "student": counts[0],
        "teacher": counts[1],
    }


def ours(student: Any, teacher: Any, ids: torch.Tensor, device: str, steps: int, batch: int) -> list[Time]:
    windows = [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}]
    held = [{name: rows[:1, :8].repeat(1, LENGTH // 8) for name, rows in windows[0].items()}]
    training = Training(
        steps=steps,
        batch_size=batch,
        evaluate_every=steps,
        device=device,
        autocast=torch.bfloat16 if device == "cuda" else None,
        optimizer=Optimizer(learning_rate=1e-4),
    )
    clock = Clock()
    logits = Logits("jsd", temperature=1.0, alpha=1.0)
    opened = [prune.open(m) for m in (student, teacher)]
    prune.distill(
        opened[0], windows, teacher=opened[1], held_out=held, training=training, logits=logits, progress=clock
    )
    return clock.times[1:]  # the first is told where a stopped run was


def arguments(folder: str, device: str, steps: int, batch: int) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "max_steps": steps,
        "per_device_train_batch_size": batch,
        "learning_rate": 1e-4,
        "save_strategy": "no",
        "report_to": [],
        "logging_steps": 10_000,
        "use_cpu": device == "cpu",
        "bf16": device == "cuda",
        "gradient_checkpointing": False,
        "dataloader_pin_memory": device == "cuda",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "beta": 0.5,
        "temperature": 1.0,
    }


def gkd(student: Any, teacher: Any, ids: torch.Tensor, device: str, steps: int, batch: int) -> list[Time]:
    """TRL's GKDTrainer, off policy."""
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    ticks = Ticks()
    with TemporaryDirectory() as folder:
        trainer = GKDTrainer(
            model=student,
            teacher_model=teacher,
            args=GKDConfig(
                **arguments(folder, device, steps, batch),
                lmbda=0.0,
                dataset_kwargs={"skip_prepare_dataset": True},
            ),
            data_collator=stack,
            train_dataset=Dataset.from_list([{"input_ids": row, "labels": row} for row in ids.tolist()]),
            processing_class=prune.open("bundled").tokenizer(),
            callbacks=[ticks],
        )
        trainer.train()
    return ticks.times


def distillation(student: Any, teacher: Any, ids: torch.Tensor, device: str, steps: int, batch: int) -> list[Time]:
    """TRL's DistillationTrainer, its completions given."""
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    class Given(DistillationTrainer):
        def _prepare_inputs(self, inputs: Any) -> dict[str, torch.Tensor]:
            rows = torch.tensor([row["row"] for row in inputs])
            held = ids[rows].to(self.accelerator.device)
            ones = torch.ones_like(held)
            return {
                "prompt_ids": held[:, :1],
                "prompt_mask": ones[:, :1],
                "completion_ids": held[:, 1:],
                "completion_mask": ones[:, 1:],
                "num_items_in_batch": ones[:, 1:].sum(),
            }

    ticks = Ticks()
    with TemporaryDirectory() as folder:
        trainer = Given(
            model=student,
            teacher_model=teacher,
            args=DistillationConfig(**arguments(folder, device, steps, batch), max_completion_length=LENGTH - 1),
            train_dataset=Dataset.from_list([{"prompt": "x", "row": row} for row in range(len(ids))]),
            processing_class=prune.open("bundled").tokenizer(),
            callbacks=[ticks],
        )
        trainer.train()
    return ticks.times


def stack(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    found = {name: torch.tensor([row[name] for row in rows]) for name in ("input_ids", "labels")}
    return {**found, "attention_mask": torch.ones_like(found["input_ids"]), "prompts": found["input_ids"][:, :1]}


def speed(device: str, steps: int, batch: int, repeats: int) -> None:
    """All sides in turn, and the medians."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in SIDES}
    for _ in range(repeats):
        for name in SIDES:
            options = ["--device", device, "--steps", str(steps), "--batch", str(batch)]
            command = [sys.executable, __file__, "side", name, *options]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[-3000:]
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(name, found[name][-1], file=sys.stderr, flush=True)
    print("| | tokens/s | tokens per second of processor time | peak memory |\n| --- | --- | --- | --- |")
    for name, runs in found.items():
        cells = [_spread(runs, "speed", 1, ".0f"), _spread(runs, "work", 1, ".0f"), _spread(runs, "peak", 2**30, ".2f")]
        print(f"| {name} | {' | '.join(cells)} GiB |")
    for name in SIDES[1:]:
        fast, work, small = (
            statistics.median(o[key] / t[key] for o, t in zip(found["ours"], found[name], strict=True))
            for key in ("speed", "work", "peak")
        )
        print(f"beside {name}: {fast:.2f} x the tokens/s ({work:.2f} x by processor time), {small:.2f} x the memory")
    cuda = device == "cuda"
    peak = flops_per_second("cuda", torch.bfloat16, 8192) if cuda else flops_per_second("cpu", torch.float32, 1024)
    where = torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} threads"
    size = found["ours"][0]["student"] / 1e9
    for name, runs in found.items():
        done = statistics.median(run["speed"] * (6 * run["student"] + 2 * run["teacher"]) for run in runs)
        print(f"{name}: {size:.2g} B student, {where}: {done / peak:.0%} of {peak:.3g} FLOP/s")


def _spread(runs: list[dict[str, float]], key: str, unit: float, form: str) -> str:
    values = sorted(run[key] / unit for run in runs)
    return f"{statistics.median(values):{form}} [{values[0]:{form}}, {values[-1]:{form}}]"


def recovery(steps: int, ratio: float, length: int, device: str) -> None:
    """The share of the excess loss that is won back on held-out text, with a teacher and by text alone."""
    data: dict[str, Any] = {"data": "python-docs", "samples": 64, "length": 256}
    cut = {"remove": {"what": ["channels", "heads"], "ratio": ratio, "criterion": "wanda"}}
    measure = {"evaluate": {"perplexity": "python-docs", "samples": 64, "length": 256}}
    sides = {
        "distill": {"distill": {"steps": steps, "length": length}},
        "train (clm)": {"train": {"steps": steps, "length": length}},
    }
    print("| | loss before the cut | after it | trained | won back |\n| --- | --- | --- | --- | --- |")
    for name, step in sides.items():
        with TemporaryDirectory() as folder:
            recipe = {"model": "bundled", "calibration": data, "device": device, "steps": [cut, measure, step, measure]}
            began = time.perf_counter()
            done = prune.apply(recipe, output=f"{folder}/out").steps
        before, pruned = (math.log(done[1]["record"]["perplexity"][key]) for key in ("before", "after"))
        after = math.log(done[3]["record"]["perplexity"]["after"])
        share = (pruned - after) / (pruned - before)
        print(f"| {name}, {steps} steps | {before:.3f} | {pruned:.3f} | {after:.3f} | {share:.0%} |", flush=True)
        print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["speed", "recovery", "side"])
    parser.add_argument("name", nargs="?", choices=SIDES)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--length", type=int, default=256, help="tokens in a window that is trained on")
    given = parser.parse_args()
    given.batch = given.batch or {"cpu": 2, "cuda": 8}[given.device]
    if given.what == "side":
        print(json.dumps(side(given.name, given.device, given.steps, given.batch)))
    elif given.what == "speed":
        speed(given.device, given.steps or 6, given.batch, given.repeats)
    else:
        recovery(given.steps or 200, given.ratio, given.length, given.device)


if __name__ == "__main__":
    main()
