"""How a model is trained, whatever it is trained on."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal

import torch

from prune.errors import PruneError
from prune.recovery.weights import Lora, Weights

BY_WIDTH = 0.2  # learning rate times width: 1e-3 at 192, 2e-4 at 1024, 5e-5 at 4096
FASTER = 4.0  # low-rank additions and norms bear a faster rate than all weights


@dataclass(frozen=True)
class Optimizer:
    """How weights are changed.

    learning_rate: at its highest; 0.2 / width when None, four times that for LoRA and norms.
    schedule: how it falls after the warm-up, to nothing at the last step.
    warmup: the share of the steps over which it rises.
    weight_decay: of matrices only.
    clip: the largest norm of the gradient; 0 for none.
    """

    name: Literal["adamw", "adafactor", "sgd"] = "adamw"
    learning_rate: float | None = None
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = 0.05
    weight_decay: float = 0.01
    clip: float = 1.0


def started(name: str = "WORLD_SIZE") -> int:
    """How many processes a launcher has started together, known before they are joined."""
    return int(os.environ.get(name, 1))


@dataclass(frozen=True)
class Training:
    """`batch_size` windows go through at once, over all processes; a step has `accumulate` times as many.

    The model is measured on held-out text every `evaluate_every` steps (a tenth of all when None), and training ends
    early when `patience` measurements in a row were no better than the best (None: never). `autocast` is what matrix
    products are made in (None: float32). `checkpointing` recomputes a layer's activations instead of keeping them;
    `sharded` spreads weights, gradients and moments over the processes (FSDP). `processes` take part, `local` of them
    on this machine: those that a launcher has started where nothing is said.
    """

    steps: int
    batch_size: int = 8
    accumulate: int = 1
    weights: Weights = "all"
    optimizer: Optimizer = field(default_factory=Optimizer)
    evaluate_every: int | None = None
    patience: int | None = 5
    autocast: torch.dtype | None = None
    checkpointing: bool = False
    sharded: bool = False
    seed: int = 0
    device: str = "cpu"
    processes: int = field(default_factory=started)
    local: int = field(default_factory=lambda: started("LOCAL_WORLD_SIZE"))

    @property
    def per_step(self) -> int:
        """Windows in a step."""
        return self.batch_size * self.accumulate

    @property
    def interval(self) -> int:
        """Steps between two measurements."""
        return self.evaluate_every or max(self.steps // 10, 1)

    @property
    def spread(self) -> bool:
        """Whether weights will lie over several processes, by `sharded` or by a launcher's word."""
        return self.processes > 1 and (self.sharded or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true")

    @property
    def bytes_each(self) -> int:
        """What a parameter of the student takes at least: float32, and a gradient and moments where all are trained."""
        moments = {"adamw": 2, "sgd": 1, "adafactor": 0}[self.optimizer.name]
        return 4 * (2 + moments if self.weights == "all" else 1)

    def learning_rate(self, width: int) -> float:
        faster = FASTER if self.weights == "norms" or isinstance(self.weights, Lora) else 1.0
        return self.optimizer.learning_rate or faster * BY_WIDTH / width


def refuse_float16(training: Training) -> None:
    """PruneError for matrix products in float16."""
    if training.autocast == torch.float16:
        raise PruneError("training in float16 needs its losses scaled; take bfloat16 or float32", where="dtype")
