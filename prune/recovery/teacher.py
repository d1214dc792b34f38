"""The teacher: a model of the same vocabulary, whole in memory, or what was kept of its logits on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prune.errors import PruneError
from prune.model.memory import available
from prune.model.model import Model
from prune.recovery.head import head, last_hidden, predicted
from prune.recovery.hidden import watching
from prune.recovery.logits import Dense, Soft
from prune.recovery.settings import Training


@dataclass(frozen=True)
class Signal:
    """What a teacher says of a batch: for the logits, and layer path -> what leaves it (batch, length, width)."""

    soft: Soft = None
    hidden: Mapping[str, Tensor] = field(default_factory=dict)


class Teacher(nn.Module):
    """A model in memory, which is only looked at."""

    def __init__(self, module: PreTrainedModel, *, shared: int, paths: list[str], logits: bool):
        super().__init__()
        self.module = module.requires_grad_(False)
        self.shared = shared
        self.paths = paths
        self.logits = logits

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        with watching(self.module, self.paths) as seen:
            return last_hidden(self.module, batch), dict(seen)


def ask(teacher: Teacher, batch: dict[str, Tensor]) -> Signal:
    """What a teacher in memory says of a batch."""
    with torch.inference_mode():
        hidden, seen = teacher(batch)
        states, _ = predicted(hidden, batch["labels"])
    # Autograd keeps what it is compared with, which it may not do with a tensor made in inference mode.
    noted = {path: state.clone() for path, state in seen.items()}
    soft = Dense(states, head(teacher.module), teacher.shared) if teacher.logits else None
    return Signal(soft, noted)


def shared_ids(student: Model, teacher: Model) -> int:
    """How many token ids both models know: their vocabularies are one, or differ in size by padding alone.

    PruneError when they are different vocabularies.
    """
    sizes = [model.config.get_text_config().vocab_size for model in (student, teacher)]
    with_tokens = [any(name.startswith("tokenizer") for name in model.files) for model in (student, teacher)]
    if not all(with_tokens):
        if sizes[0] != sizes[1]:
            raise PruneError(
                f"the student has {sizes[0]} token ids, the teacher {sizes[1]}, and no tokenizer says which are shared",
                where="teacher",
            )
        return sizes[0]
    if sizes[0] == sizes[1] and _same_files(student, teacher):
        return sizes[0]
    mine, theirs = (model.tokenizer().get_vocab() for model in (student, teacher))
    if mine != theirs:
        apart = sum(theirs.get(token) != number for token, number in mine.items())
        raise PruneError(
            f"teacher and student have different vocabularies: {apart} of the student's {len(mine)} tokens are not, or "
            f"have other ids, among the teacher's {len(theirs)}; take a teacher with the student's tokenizer",
            where="teacher",
        )
    if max(mine.values(), default=0) >= min(sizes):
        raise PruneError(f"the tokenizer has ids beyond the {min(sizes)} that both models know", where="teacher")
    return min(sizes)


def _same_files(student: Model, teacher: Model) -> bool:
    names = [name for name in student.files if name.startswith(("tokenizer", "vocab", "merges", "added_tokens"))]
    return all(
        name in teacher.files and student.files[name].read_bytes() == teacher.files[name].read_bytes() for name in names
    )


def refuse_too_large(teacher: Model, student: Model, training: Training) -> None:
    """PruneError when the teacher will not fit beside the student that is trained, saying by how much.

    A GPU is one process's own, a CPU's memory that of all on the machine. Spread weights are counted once over all
    processes; but on a CPU each has first loaded all of them.
    """
    needed = teacher.tensors.parameters * (training.autocast or torch.float32).itemsize
    beside = student.tensors.parameters * training.bytes_each
    each = (needed + beside) / (training.processes if training.spread else 1)
    copies, on_cpu = 1, training.device == "cpu"
    if on_cpu:
        copies, each = training.local, max(each, needed + 4 * student.tensors.parameters)
    free, of_each = available(training.device), "" if on_cpu or training.processes == 1 else " on each"
    if each * copies > free:
        raise PruneError(
            f"too large: the teacher takes {needed / 1e9:.1f} GB and training the student {beside / 1e9:.1f} GB"
            f"{_over(training)}, {free / 1e9:.1f} GB are free{of_each}; "
            "`cache` takes its logits once, a layer in memory at a time",
            where="teacher",
        )


def _over(training: Training) -> str:
    """Who holds it, where there are several."""
    if training.processes == 1:
        return ""
    return f", spread over {training.processes} processes" if training.spread else ", in each process"
