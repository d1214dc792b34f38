"""What looks on while one of TRL's trainers trains: the best weights, the curve, patience, and a state to go on from.

TRL's own checkpoints hold pickles. Here a state is what `recover` leaves too, safetensors and JSON; the trainer is told
nothing but the step that it stands at.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import TrainerCallback, TrainerState, TrainingArguments

from prune.errors import PruneError
from prune.progress import Advance
from prune.recovery import state as states
from prune.recovery.settings import Training
from prune.recovery.state import Facts


@dataclass
class Watch(TrainerCallback):
    """Keeps facts and the best weights by held-out loss; `held` is what a stopped run left, until it is put back.

    A state is written to `folder` (None: nowhere) at every look at held-out data but the last.
    """

    training: Training
    advance: Advance
    folder: Path | None
    facts: Facts = field(default_factory=Facts)
    best: dict[str, Tensor] = field(default_factory=dict)
    held: Mapping[str, dict[str, Tensor]] = field(default_factory=dict)
    heard: int = 0  # tokens before this process began

    @property
    def given_up(self) -> bool:
        return self.training.patience is not None and self.facts.unbeaten >= self.training.patience

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ARG002
        if self.held:
            states.restore(given["model"], self.held["weights"])
            states.restore_moments(given["model"], given["optimizer"], self.held["moments"])
            _catch_up(given["lr_scheduler"], self.facts.step)
            self.held = {}

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ARG002
        logs = given["logs"]
        if "loss" not in logs:
            return
        if not (math.isfinite(logs["loss"]) and math.isfinite(logs.get("grad_norm", 0.0))):
            self._refuse_nonfinite(state.global_step)
        self.facts.tokens = self.heard + int(logs.get("num_tokens", 0))
        self.facts.curve.append({"step": state.global_step, "loss": logs["loss"], "held_out": None})

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ARG002
        self.facts.step = state.global_step
        control.should_evaluate |= state.global_step == self.training.steps
        last = self.facts.curve[-1]["loss"] if self.facts.curve else None
        self.advance(1, f"loss {last:.3f}" if last is not None else "")

    def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ARG002
        facts, loss = self.facts, given["metrics"]["eval_loss"]
        if not facts.curve or facts.curve[-1]["step"] != facts.step:
            facts.curve.append({"step": facts.step, "loss": None, "held_out": None})
        facts.curve[-1]["held_out"] = loss
        if facts.step == 0:
            facts.before = facts.best = loss
        elif loss < facts.best:
            facts.best, facts.best_step, facts.unbeaten = loss, facts.step, 0
            self.best = states.snapshot(given["model"])
        else:
            facts.unbeaten += 1
        control.should_training_stop |= self.given_up
        if self.folder and 0 < facts.step < self.training.steps and not self.given_up:
            self._save(given["model"], given["optimizer"], first=state.is_world_process_zero)

    def _save(self, model: Any, optimizer: Any, *, first: bool) -> None:
        assert self.folder
        moments = states.moments(model, optimizer)
        tensors = {"weights": states.snapshot(model), "moments": moments, "best": self.best}
        if first:
            states.save(self.folder, self.facts, tensors)

    def _refuse_nonfinite(self, step: int) -> None:
        kept = states.latest(self.folder) if self.folder else None
        raise PruneError(
            f"the loss or its gradient is not a number by step {step} of {self.training.steps}; take a lower learning "
            "rate" + (f"; earlier weights are kept in {kept}" if kept else ""),
            where="optimizer",
        )


def _catch_up(schedule: Any, step: int) -> None:
    """A learning rate's schedule, just made, as it stands after some steps."""
    schedule.last_epoch = step - 1
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of a schedule that moves before any step
        schedule.step()


def stand_at(step: int, args: TrainingArguments) -> str:
    """A folder that tells a trainer of these settings which step it stands at: it passes by the batches before."""
    state = TrainerState(global_step=step, train_batch_size=args.train_batch_size)
    state.compute_steps(args, args.max_steps)
    state.save_to_json(f"{args.output_dir}/trainer_state.json")
    return str(args.output_dir)
