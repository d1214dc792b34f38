"""Processes that train together: accelerate says who is who, and wraps what is trained for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from prune.recovery.settings import Training

WAIT = timedelta(minutes=30)  # for a process that does not answer


@dataclass(frozen=True)
class Engine:
    """One of the processes. `sharded`: weights are spread over them all."""

    accelerator: Any
    sharded: bool
    autocast: torch.dtype | None

    @property
    def rank(self) -> int:
        return int(self.accelerator.process_index)

    @property
    def processes(self) -> int:
        return int(self.accelerator.num_processes)

    @property
    def device(self) -> torch.device:
        found: torch.device = self.accelerator.device
        return found

    @property
    def first(self) -> bool:
        return self.rank == 0

    def precision(self) -> AbstractContextManager:
        """Matrix products in the precision that is asked for."""
        return torch.autocast(self.device.type, self.autocast) if self.autocast else nullcontext()

    def wrap(self, module: nn.Module, layers: list[nn.Module]) -> nn.Module:
        """What is called instead of a module, so that its gradients are those of all processes (DDP or FSDP)."""
        if self.sharded:
            return shard(module, layers)
        found: nn.Module = self.accelerator.prepare_model(module)
        return found

    def apart(self, module: nn.Module) -> AbstractContextManager:
        """No exchange of gradients: for all but the last batch of a step."""
        found: AbstractContextManager = self.accelerator.no_sync(module) if not self.sharded else nullcontext()
        return found

    def added_up(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        found: Tensor = self.accelerator.reduce(values, reduction="sum")
        return found


def shard(module: nn.Module, layers: list[nn.Module]) -> nn.Module:
    """Spreads a module's weights over all processes, in place, layer by layer."""
    from torch.distributed.fsdp import fully_shard

    for layer in layers:
        fully_shard(layer)
    fully_shard(module, reshard_after_forward=False)
    return module


@contextmanager
def engine(training: Training, *, unused: bool = False) -> Iterator[Engine]:
    """This process among those that were started together (one, when it was started alone).

    `unused`: some parameters may get no gradient in a step.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
    from accelerate.utils import DistributedType

    handlers = [
        DistributedDataParallelKwargs(find_unused_parameters=unused),
        InitProcessGroupKwargs(timeout=WAIT),
    ]
    accelerator = Accelerator(cpu=training.device == "cpu", mixed_precision="no", kwargs_handlers=handlers)
    try:
        many = accelerator.num_processes > 1
        sharded = many and (training.spread or accelerator.distributed_type == DistributedType.FSDP)
        yield Engine(accelerator, sharded, training.autocast)
    finally:
        accelerator.free_memory()
        forget()


def forget() -> None:
    """Leaves the processes that were joined, so that the next training joins its own."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
