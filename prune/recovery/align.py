"""Instruction tuning and preference alignment by TRL's trainers, on the same terms: no worse than it began.

sft: cross-entropy on answers (https://arxiv.org/abs/2203.02155). dpo: https://arxiv.org/abs/2305.18290, against the
model as it came in. TRL keeps its checkpoints as pickles, so none are written: a stopped run begins anew.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback

from prune.errors import PruneError, need
from prune.instructions import TEMPLATE, Message
from prune.model.model import Model
from prune.model.save import load
from prune.progress import Progress
from prune.recovery import head
from prune.recovery import state as states
from prune.recovery import weights as trained
from prune.recovery.engine import forget, processes
from prune.recovery.objective import Batch
from prune.recovery.recover import Trained, as_model, rounded
from prune.recovery.settings import Training

Preference = Mapping[str, Sequence[Message]]  # prompt, chosen, rejected


def check(model: Model, training: Training) -> None:
    """PruneErrors that can be known before."""
    need("trl", "align", what="this objective", where="objective")
    head.refuse_others(model)
    trained.check(model, training.weights)
    if training.sharded:
        raise PruneError("is for clm and distill; TRL shards when `accelerate launch` is told to", where="sharded")


def tune(
    model: Model, batches: Sequence[Batch], held_out: Sequence[Batch], *, training: Training, progress: Progress
) -> Trained:
    """Supervised tuning on windows whose labels are the answers, by TRL's SFTTrainer. Errors are those of `check`."""
    from trl import SFTConfig, SFTTrainer

    check(model, training)

    def make(module: PreTrainedModel, folder: str, watch: TrainerCallback) -> Any:
        return SFTTrainer(
            model=module,
            args=SFTConfig(**_arguments(model, training, folder), dataset_kwargs={"skip_prepare_dataset": True}),
            train_dataset=_rows(batches),
            eval_dataset=_rows(held_out),
            processing_class=model.tokenizer(),
            callbacks=[watch],
        )

    return _run(model, make, training, progress)


def align(
    model: Model,
    pairs: Sequence[Preference],
    held_out: Sequence[Preference],
    *,
    training: Training,
    length: int,
    progress: Progress,
) -> Trained:
    """Direct preference optimisation by TRL's DPOTrainer; answers beyond `length` tokens are cut off."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    check(model, training)
    tokenizer = model.tokenizer()
    tokenizer.chat_template = tokenizer.chat_template or TEMPLATE

    def make(module: PreTrainedModel, folder: str, watch: TrainerCallback) -> Any:
        return DPOTrainer(
            model=module,
            ref_model=load(model, dtype=torch.float32),
            args=DPOConfig(**_arguments(model, training, folder), max_length=length),
            train_dataset=Dataset.from_list([dict(pair) for pair in pairs]),
            eval_dataset=Dataset.from_list([dict(pair) for pair in held_out]),
            processing_class=tokenizer,
            callbacks=[watch],
        )

    return _run(model, make, training, progress)


def _arguments(model: Model, training: Training, folder: str) -> dict[str, Any]:
    """What our settings are called by TRL. Batches are over all processes here, of one process there."""
    names = {"adamw": "adamw_torch", "adafactor": "adafactor", "sgd": "sgd"}
    optimizer = training.optimizer
    return {
        "output_dir": folder,
        "max_steps": training.steps,
        "per_device_train_batch_size": max(training.batch_size // processes(), 1),
        "per_device_eval_batch_size": max(training.batch_size // processes(), 1),
        "gradient_accumulation_steps": training.accumulate,
        "learning_rate": training.learning_rate(model.numbers["width"]),
        "lr_scheduler_type": optimizer.schedule,
        "warmup_steps": math.ceil(optimizer.warmup * training.steps),
        "weight_decay": optimizer.weight_decay,
        "max_grad_norm": optimizer.clip,
        "optim": names[optimizer.name],
        "adam_beta2": 0.95,
        "bf16": training.autocast is torch.bfloat16,
        "eval_strategy": "steps",
        "eval_steps": training.interval,
        "logging_steps": max(training.steps // 100, 1),
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": training.device == "cpu",
        "seed": training.seed,
        "remove_unused_columns": True,
        "dataloader_pin_memory": training.device != "cpu",
        **({"gradient_checkpointing": True} if training.checkpointing else {}),
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


@dataclass
class _Watch(TrainerCallback):
    """Keeps the best weights by held-out loss, the curve, and the patience."""

    training: Training
    advance: Any
    best: float = math.inf
    best_step: int = 0
    unbeaten: int = 0
    tokens: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)
    curve: list[dict[str, Any]] = field(default_factory=list)

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ARG002
        logs = given["logs"]
        self.tokens = int(logs.get("num_tokens", self.tokens))
        if "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise PruneError(
                f"the loss is not a number at step {state.global_step} of {self.training.steps}; "
                "take a lower learning rate",
                where="optimizer",
            )
        self.curve.append({"step": state.global_step, "loss": logs["loss"], "held_out": None})

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ARG002
        last = self.curve[-1] if self.curve else None
        self.advance(1, f"loss {last['loss']:.3f}" if last and last["loss"] is not None else "")

    def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ARG002
        loss, step = given["metrics"]["eval_loss"], state.global_step
        if self.curve and self.curve[-1]["step"] == step:
            self.curve[-1]["held_out"] = loss
        else:
            self.curve.append({"step": step, "loss": None, "held_out": loss})
        self.unbeaten += 1
        if loss < self.best:
            self.best, self.best_step, self.unbeaten = loss, step, 0
            self.weights = states.snapshot(given["model"]) if step else {}
        patience = self.training.patience
        control.should_training_stop |= patience is not None and self.unbeaten >= patience


def _run(model: Model, make: Any, training: Training, progress: Progress) -> Trained:
    """Any of TRL's trainers from beginning to end."""
    module = load(model, dtype=torch.float32)
    trained.select(module, model, training.weights, training.seed)
    with (
        warnings.catch_warnings(action="ignore", category=FutureWarning),  # TRL speaks to transformers in old words
        TemporaryDirectory() as folder,
        progress.track("training", training.steps) as advance,
    ):
        watch = _Watch(training, advance)
        trainer = make(module, folder, watch)
        trainer.remove_callback(PrinterCallback)
        try:
            before = float(trainer.evaluate()["eval_loss"])
            found = trainer.train()
            if not trainer.is_world_process_zero():
                return Trained(model, {}, {})
            after, out = before, model
            if watch.weights:
                states.restore(module, watch.weights)
                trained.merge(module)
                rounded(module, model)
                after = float(trainer.evaluate()["eval_loss"]) if trainer.args.world_size == 1 else watch.best
                out = as_model(model, module) if after < before else model
        finally:
            trainer.accelerator.free_memory()
            forget()
    seconds = found.metrics["train_runtime"]
    record = {
        "curve": watch.curve,
        "before": before,
        "after": after if out is not model else before,
        "best_step": watch.best_step if out is not model else 0,
        "steps": int(found.global_step),
        "tokens": watch.tokens,
        "kept_start": out is model,
        "parts": {},
    }
    return Trained(out, record, {"tokens_per_second": record["tokens"] / max(seconds, 1e-9)})
