"""What is kept of a layer's run, so that neither the uncut layer nor the cut one has to run again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prune.model.walk import Visit
from prune.remove.stages import silent, watching

KEPT = 2**28  # bytes of a layer's inner states that are kept rather than computed again
ADDS = 0.05  # relative difference up to which an output counts as added to the stream as it is; rounding is below it


@dataclass(frozen=True)
class Looked:
    """What is kept of the uncut layer's one run, by batch: hidden states (batch, length, width)."""

    outputs: dict[str, list[Tensor]]  # path of an output linear but the last -> its outputs
    # The stream before the last one adds to it, or, where it adds not as it is, its output; empty where not wanted.
    before: list[Tensor]


def look(
    dense: Visit,
    paths: Sequence[str],
    additive: dict[str, bool],
    through: Callable[[Callable[[int], Tensor]], None] | None = None,
    *,
    before: bool = True,
) -> Looked:
    """Send all batches through the uncut layer, once, and keep what solving its output linears at `paths` needs.

    `through`, where something else looks on, is handed what runs a batch and runs them all. `before` says whether the
    stream before a last linear that adds to it is wanted.
    """
    found = Looked({path: [] for path in paths[:-1]}, [])
    if paths:
        _check_additive(dense, paths[-1], additive)

    def run(batch: int) -> Tensor:
        with watching(dense.module, paths) as seen:
            out = dense.forward(batch)
        for path in paths[:-1]:
            found.outputs[path].append(output_of(seen[path]))
        if paths:
            last = output_of(seen[paths[-1]]).reshape(out.shape)
            if additive[paths[-1]]:
                last = out - last if before else out.new_empty(0)
            found.before.append(last)
        return out

    if through is not None:
        through(run)
    else:
        dense.outputs = [run(batch) for batch in range(len(dense.batches))]
    return found


def _check_additive(dense: Visit, path: str, additive: dict[str, bool]) -> None:
    """Find out, once for each path, whether silencing the linear takes exactly its output from the stream."""
    if path in additive:
        return
    with watching(dense.module, [path]) as seen:
        whole = dense.forward(0)
    with silent(dense.module, path):
        without = dense.forward(0)
    added = output_of(seen[path]).reshape(whole.shape).float()
    missed = torch.linalg.vector_norm((whole - without).float() - added)
    additive[path] = bool(missed <= ADDS * torch.linalg.vector_norm(added))


def output_of(seen: tuple[Tensor, Tensor | None]) -> Tensor:
    assert seen[1] is not None
    return seen[1]


class Halfway:
    """What a layer's last output linear reads and adds to, of as many batches as there is room for.

    With them the layer need not be run again once the linear has its new weights.
    """

    def __init__(self, wanted: bool):
        self.room = KEPT if wanted else 0
        self.states: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(self, batch: int, entered: Tensor, out: Tensor, added: Tensor) -> None:
        size = entered.nbytes + out.nbytes
        if size <= self.room and out.dtype == torch.float32:  # of a shorter type the difference is rounded
            self.room -= size
            self.states[batch] = (entered, out - added.reshape(out.shape))

    def outputs(self, visit: Visit, path: str) -> list[Tensor]:
        """What leaves the layer, by batch."""
        return [self._output(visit, path, batch) for batch in range(len(visit.batches))]

    def _output(self, visit: Visit, path: str, batch: int) -> Tensor:
        if batch not in self.states:
            return visit.forward(batch)
        entered, before = self.states.pop(batch)
        with torch.no_grad():
            found: Tensor = visit.module.get_submodule(path)(entered)
        return before + found.reshape(before.shape)
