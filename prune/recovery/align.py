"""Instruction tuning and preference alignment by TRL's trainers, on the same terms: no worse than it began.

sft: cross-entropy on answers (https://arxiv.org/abs/2203.02155). dpo: https://arxiv.org/abs/2305.18290, against the
model as it came in. TRL keeps its checkpoints as pickles, so none of them is written: `watch` keeps states of ours.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PrinterCallback

from prune.errors import PruneError, need
from prune.instructions import TEMPLATE, Message
from prune.model.model import Model
from prune.model.save import load
from prune.progress import Advance, Progress
from prune.recovery import head
from prune.recovery import state as states
from prune.recovery import weights as trained
from prune.recovery.engine import forget
from prune.recovery.fit import LOGGED
from prune.recovery.objective import Batch
from prune.recovery.optimize import MOMENTUM
from prune.recovery.recover import Trained, as_model, rounded
from prune.recovery.settings import Training, refuse_float16
from prune.recovery.state import Facts
from prune.recovery.watch import Watch, stand_at

Preference = Mapping[str, Sequence[Message]]  # prompt, chosen, rejected


def check(model: Model, training: Training) -> None:
    """PruneErrors that can be known before."""
    need("trl", "align", what="this objective", where="objective")
    head.refuse_others(model)
    trained.check(model, training.weights)
    refuse_float16(training)
    if training.batch_size % training.processes:
        said = f"{training.batch_size} does not divide by {training.processes} processes"
        raise PruneError(said, where="batch_size")
    if training.sharded or os.environ.get("ACCELERATE_USE_FSDP") == "true":
        raise PruneError(
            "sharding is for clm and distill; sft and dpo hold the model whole everywhere", where="sharded"
        )


def tune(
    model: Model,
    batches: Sequence[Batch],
    held_out: Sequence[Batch],
    *,
    training: Training,
    folder: Path | None = None,
    progress: Progress,
) -> Trained:
    """Supervised tuning on windows whose labels are the answers, by TRL's SFTTrainer.

    What a stopped run left in `folder` is gone on from. Errors are those of `check`, and a loss that is not a number.
    """
    from trl import SFTConfig, SFTTrainer

    check(model, training)

    def make(module: PreTrainedModel, scratch: str, watch: Watch) -> Any:
        return SFTTrainer(
            model=module,
            args=SFTConfig(**_arguments(model, training, scratch), dataset_kwargs={"skip_prepare_dataset": True}),
            train_dataset=_rows(batches),
            eval_dataset=_rows(held_out),
            processing_class=model.tokenizer(),
            callbacks=[watch],
        )

    return _run(model, make, training, folder, progress)


def align(
    model: Model,
    pairs: Sequence[Preference],
    held_out: Sequence[Preference],
    *,
    training: Training,
    length: int,
    folder: Path | None = None,
    progress: Progress,
) -> Trained:
    """Direct preference optimisation by TRL's DPOTrainer; answers beyond `length` tokens are cut off.

    `folder` and errors are those of `tune`.
    """
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    check(model, training)
    tokenizer = model.tokenizer()
    tokenizer.chat_template = tokenizer.chat_template or TEMPLATE

    def make(module: PreTrainedModel, scratch: str, watch: Watch) -> Any:
        return DPOTrainer(
            model=module,
            ref_model=load(model, dtype=torch.float32),
            args=DPOConfig(**_arguments(model, training, scratch), max_length=length),
            train_dataset=Dataset.from_list([dict(pair) for pair in pairs]),
            eval_dataset=Dataset.from_list([dict(pair) for pair in held_out]),
            processing_class=tokenizer,
            callbacks=[watch],
        )

    return _run(model, make, training, folder, progress)


def _arguments(model: Model, training: Training, folder: str) -> dict[str, Any]:
    """What our settings are called by TRL. Batches are over all processes here, of one process there."""
    names = {"adamw": "adamw_torch", "adafactor": "adafactor", "sgd": "sgd"}
    schedules = {"constant": "constant_with_warmup"}  # "constant" alone passes the warm-up over
    optimizer = training.optimizer
    rows = max(training.batch_size // training.processes, 1)
    return {
        "output_dir": folder,
        "max_steps": training.steps,
        "per_device_train_batch_size": rows,
        "per_device_eval_batch_size": rows,
        "gradient_accumulation_steps": training.accumulate,
        "learning_rate": training.learning_rate(model.numbers["width"]),
        "lr_scheduler_type": schedules.get(optimizer.schedule, optimizer.schedule),
        "warmup_steps": math.ceil(optimizer.warmup * training.steps),
        "weight_decay": optimizer.weight_decay,
        "max_grad_norm": optimizer.clip,
        "optim": names[optimizer.name],
        **({"optim_args": f"momentum={MOMENTUM}"} if optimizer.name == "sgd" else {}),
        "adam_beta2": 0.95,
        "bf16": training.autocast is torch.bfloat16,
        "eval_strategy": "steps",
        "eval_steps": training.interval,
        "logging_steps": math.gcd(training.interval, max(training.steps // LOGGED, 1)),  # a state is saved at a log
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": training.device == "cpu",
        "seed": training.seed,
        "remove_unused_columns": True,
        "dataloader_pin_memory": training.device != "cpu",
        "gradient_checkpointing": training.checkpointing,  # TRL's own default is to recompute
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    }


def _rows(batches: Sequence[Batch]) -> Any:
    """Windows as TRL takes them, padding left out."""
    from datasets import Dataset

    found = []
    for batch in batches:
        for ids, mask, labels in zip(*(batch[n] for n in ("input_ids", "attention_mask", "labels")), strict=True):
            kept = mask.bool()
            found.append({"input_ids": ids[kept].tolist(), "labels": labels[kept].tolist()})
    return Dataset.from_list(found)


def _run(model: Model, make: Any, training: Training, folder: Path | None, progress: Progress) -> Trained:
    """Any of TRL's trainers from beginning to end; goes on from what a stopped run left in `folder`."""
    module = load(model, dtype=torch.float32)
    trained.select(module, model, training.weights, training.seed)
    _nothing_drops_out(module)
    with (
        warnings.catch_warnings(action="ignore", category=FutureWarning),  # TRL speaks to transformers in old words
        TemporaryDirectory() as scratch,
        progress.track("training", training.steps) as advance,
    ):
        watch = _watch(training, folder, advance, progress)
        trainer = make(module, scratch, watch)
        trainer.remove_callback(PrinterCallback)
        try:
            _train(trainer, watch)
            trainer.remove_callback(watch)
            after, out = _finished(trainer, watch, module, model)
            first = trainer.is_world_process_zero()
        finally:
            trainer.accelerator.free_memory()
            forget()
    return _told(watch.facts, after, out, model) if first else Trained(model, {}, {})


def _watch(training: Training, folder: Path | None, advance: Advance, progress: Progress) -> Watch:
    """Looks on from the start, or from where a stopped run was."""
    found = states.load(folder) if folder else None
    if found is None:
        return Watch(training, advance, folder)
    facts, tensors = found
    progress.say(f"going on after step {facts.step}")
    advance(facts.step)
    return Watch(training, advance, folder, facts, tensors["best"], tensors, heard=facts.tokens)


def _train(trainer: Any, watch: Watch) -> None:
    began, before = time.perf_counter(), watch.facts.seconds
    resumed = watch.facts.step > 0
    if not resumed:
        trainer.evaluate()
        began = time.perf_counter()
    trainer._load_from_checkpoint = lambda *_: None  # the watch puts weights back, with all else
    trainer.train(resume_from_checkpoint=stand_at(watch.facts.step, trainer.args) if resumed else None)
    watch.facts.seconds = before + time.perf_counter() - began


def _finished(trainer: Any, watch: Watch, module: PreTrainedModel, model: Model) -> tuple[float, Model]:
    """The best weights, unless, in the type they are stored in, they are no better than the start."""
    if watch.best:
        states.restore(module, watch.best)
        trained.merge(module)
        rounded(module, model)
        after = float(trainer.evaluate()["eval_loss"])
        if after < watch.facts.before:
            return after, as_model(model, module)
    return watch.facts.before, model


def _told(facts: Facts, after: float, out: Model, model: Model) -> Trained:
    record = {
        "curve": facts.curve,
        "before": facts.before,
        "after": after,
        "best_step": facts.best_step if out is not model else 0,
        "steps": facts.step,
        "tokens": facts.tokens,
        "kept_start": out is model,
        "parts": {},
    }
    return Trained(out, record, {"tokens_per_second": facts.tokens / max(facts.seconds, 1e-9)})


def _nothing_drops_out(module: PreTrainedModel) -> None:
    """So that what was stopped goes on as it would have, with no generator's state to keep."""
    parts: list[Any] = list(module.modules())
    for part in parts:
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        elif isinstance(getattr(part, "attention_dropout", None), float):
            part.attention_dropout = 0.0
