"""The loss on hidden states: what leaves a student's layer beside what leaves the teacher's layer it stands for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from prune.errors import PruneError

LayerMap = Mapping[int, int]  # a student's layer -> the teacher's that it is compared with, both counted from 0


@dataclass(frozen=True)
class Hidden:
    """How hidden states are compared: `mse` (mean over the width) or `cosine` (1 - cosine), means over tokens."""

    distance: Literal["mse", "cosine"] = "mse"
    layers: LayerMap | None = None


def layer_map(
    student: int, teacher: int, *, given: LayerMap | None = None, kept: Sequence[int] | None = None
) -> dict[int, int]:
    """Which layers are compared: as given, else those that a plan kept, else spread evenly with the last on the last.

    `student` and `teacher` count the layers. PruneError for a layer that is not there.
    """
    if given is not None:
        for own, other in given.items():
            if not (0 <= own < student and 0 <= other < teacher):
                raise PruneError(
                    f"maps layer {own} to {other}; choices: 0 to {student - 1} of the student, "
                    f"0 to {teacher - 1} of the teacher",
                    where="hidden",
                )
        return dict(given)
    if kept is not None and len(kept) == student:
        return dict(enumerate(kept))
    return {own: round(own * (teacher - 1) / max(student - 1, 1)) for own in range(student)}


def kept_layers(records: Sequence[Mapping[str, Any]]) -> list[int] | None:
    """The original's layers that are left after steps, from their plans; None where no plan says so.

    `records` are what the steps before left, in order. Those that build layers anew leave nothing known.
    """
    kept: list[int] | None = None
    for record in records:
        if "merge" in record or "layers" in record:
            return None
        chosen = (record.get("plan") or {}).get("layers")
        if chosen is not None:
            kept = [kept[layer] for layer in chosen] if kept else list(chosen)
    return kept


@contextmanager
def watching(module: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What leaves the layers at `paths`, (batch, length, width) each, from forward passes inside the block."""
    seen: dict[str, Tensor] = {}

    def note(path: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            seen[path] = output if isinstance(output, Tensor) else output[0]

        return hook

    hooks = [module.get_submodule(path).register_forward_hook(note(path)) for path in paths]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def projections(count: int, student: int, teacher: int, seed: int) -> nn.ModuleDict:
    """`count` linear maps without bias from the student's width to the teacher's.

    None where the widths are the same. They are trained with the student and are no part of it.
    """
    if student == teacher:
        return nn.ModuleDict()
    generator = torch.Generator().manual_seed(seed)
    made = nn.ModuleDict()
    for number in range(count):
        linear = nn.Linear(student, teacher, bias=False, device="meta")
        linear.weight = nn.Parameter(torch.randn(teacher, student, generator=generator) * student**-0.5)
        made[str(number)] = linear
    return made


def hidden_loss(mine: Tensor, theirs: Tensor, mask: Tensor, distance: str, *, total: float) -> Tensor:
    """The distance of hidden states (batch, length, width): a sum over tokens in `mask` (batch, length), by `total`."""
    mine, theirs = mine.float(), theirs.to(mine.device).float()
    if distance == "cosine":
        per_token = 1 - cosine_similarity(mine, theirs, dim=-1)
    else:
        per_token = (mine - theirs).square().mean(-1)
    return (per_token * mask).sum() / total
