"""One layer solved anew: what its linears should give, by the uncut one, for what they see in the pruned one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from prune.errors import PruneError
from prune.model.family import Sublayer
from prune.model.halves import left_out
from prune.model.memory import release
from prune.model.walk import Visit
from prune.remove import gauss_newton, solve
from prune.remove.looked import Halfway, Looked, output_of
from prune.remove.onward import move_on, sequential
from prune.remove.stages import Stage, set_weights, text, until_seen, watching, weight_of

Linears = Literal["outputs", "all"]
DAMPINGS = (1e-4, 1e-3, 1e-2, 1e-1)  # tried for each stage
DEFAULT_DAMPING = 1e-2  # where there is too little data to try
HELD_OUT = 8  # one batch in so many judges a damping


@dataclass(frozen=True)
class Settings:
    """How linears are solved. `share` of the pruned stream's error is added to what an output linear should give."""

    share: float
    own_stream: bool  # targets are what the uncut layer gives for the pruned stream
    linears: Linears
    damping: float | None  # None tries DAMPINGS on held-out batches
    intercept: bool
    rounds: int = 0  # of Gauss-Newton over the whole MLP, after its output was solved
    only: frozenset[int] | None = None  # layers whose last output linear alone is solved; None solves all


@dataclass(frozen=True)
class Work:
    """One layer's two visits, and the walk that goes on from the uncut one to `end`, the last one dropped after it."""

    dense: Visit
    pruned: Visit
    uncut: Iterator[Visit]
    end: int
    settings: Settings
    looked: Looked
    additive: dict[str, bool]  # path of an output linear -> whether its output is added to the stream as it is
    width: Tensor | None = None  # positions of the uncut stream that the pruned one still has; None for all
    halves: Mapping[str, Sublayer] = field(default_factory=dict)  # the family's attention and MLP, if it tells them

    def stream(self, states: Tensor, mask: Tensor | None) -> Tensor:
        """Uncut hidden states at positions that are text and still there, float32 (tokens, width)."""
        found = text(states, mask)
        return found if self.width is None else found[:, self.width.to(found.device)]


@dataclass(frozen=True)
class Solved:
    """A linear's new parameters by name ("weight", "bias"), and how they were found."""

    path: str
    values: dict[str, Tensor]
    damping: float
    raised: bool
    tokens: int
    inputs: int


def solved(work: Work, todo: Sequence[Stage]) -> Iterator[Solved]:
    """Solve stage after stage, each with the new weights of those before it in place.

    The last output linear makes up for the dropped layers that follow, if there are any.
    """
    outputs = [stage for stage in todo if stage.output]
    if not outputs:
        return
    last = outputs[-1]
    path = last.linears[0].path
    if work.end > work.dense.index and not work.additive[path]:
        raise PruneError(
            f"layers cannot be folded into {path}: its output is not added to the stream as it is", where="fold"
        )
    with ExitStack() as past:  # a settled attention is not run again
        moved = False
        for stage in todo:
            if stage is last:
                yield from _last(work, stage)
                continue
            read: list[Tensor] = []
            yield from _inside(work, stage, path, read)
            own = stage.linears[0].path
            if read and not moved and move_on(work.pruned, work.halves, own, read, work.additive):
                past.enter_context(left_out(work.pruned.module, [work.halves["attention"]]))
                moved = True
        if moved:
            work.pruned.run()


def _inside(work: Work, stage: Stage, last: str, read: list[Tensor]) -> Iterator[Solved]:
    """Solve a stage that is not the layer's last output: its linears should give what they gave in the uncut model.

    `read` is given what an output linear reads, where the layer can be run on from there.
    """
    dense, pruned = work.dense, work.pruned
    paths = [linear.path for linear in stage.linears]
    pair = _Pair(work, stage)
    keeps = stage.output and sequential(work.halves, pruned.module)
    for b in range(len(dense.batches)):
        mask = dense.mask(b)
        given = _given(work, stage, b)
        rows = [(linear.rows, text(given[linear.path], mask)) for linear in stage.linears]
        wanted = torch.cat([found if kept is None else found[:, kept.to(found.device)] for kept, found in rows], dim=1)
        if stage.output and work.settings.share and work.additive[last]:
            missed = work.stream(dense.inputs[b], mask) - text(pruned.inputs[b], mask)
            wanted = wanted + work.settings.share * missed
        with watching(pruned.module, paths, stop="entered") as mine:
            until_seen(lambda b=b: pruned.forward(b))  # type: ignore[misc]
        if keeps:
            read.append(mine[paths[0]][0])
        pair.add(b, text(mine[paths[0]][0], mask), wanted)
    yield from pair.solved()


def _given(work: Work, stage: Stage, batch: int) -> dict[str, Tensor]:
    """What a stage's linears give in the uncut layer, by path: as it was kept, or from a run as far as them."""
    if stage.output:
        kept = work.looked.outputs[stage.linears[0].path]
        found, kept[batch] = kept[batch], kept[batch].new_empty(0)
        return {stage.linears[0].path: found}
    with watching(work.dense.module, [linear.path for linear in stage.linears], stop="left") as seen:
        until_seen(lambda: work.dense.forward(batch))
    return {path: output_of(pair) for path, pair in seen.items()}


def _last(work: Work, stage: Stage) -> Iterator[Solved]:
    """Solve the layer's last output linear: the stream should leave it, and the dropped ones after, as it did."""
    dense, pruned, path = work.dense, work.pruned, stage.linears[0].path
    before = work.looked.before
    ends = _run_to_end(work)
    pair = _Pair(work, stage)
    block = whole_block(pruned.module, path) if work.settings.rounds else ""
    seen_by: list[Tensor] = []  # by batch, what enters the MLP and what should leave it: (tokens, width)
    targets: list[Tensor] = []
    halfway = Halfway(work.additive[path] and not block)
    for b in range(len(dense.batches)):
        mask = pruned.mask(b)
        with watching(pruned.module, [path, block] if block else [path]) as mine:
            out = pruned.forward(b)
        if work.additive[path]:
            share, end = work.settings.share, work.stream(ends[b], mask)
            own = text(out, mask) - text(output_of(mine[path]), mask)  # the cut stream before it is added to
            if share == 1:
                wanted = end - own
            else:
                start = work.stream(before[b], mask)
                wanted = end - start + share * (start - own)
        else:
            wanted = work.stream(before[b], mask)
        pair.add(b, text(mine[path][0], mask), wanted)
        halfway.keep(b, mine[path][0], out, output_of(mine[path]))
        before[b] = before[b].new_empty(0)
        if block:
            seen_by.append(text(mine[block][0], mask))
            targets.append(wanted)
    last = list(pair.solved())
    del pair  # its sums, which nothing needs any more
    yield from last
    if block:
        yield from _whole(work, block, seen_by, targets, last[0])
    else:
        pruned.outputs = halfway.outputs(pruned, path)


def whole_block(layer: nn.Module, path: str) -> str:
    """The module that an output linear ends, where it is nothing but linears between one input and one output."""
    block, _, name = path.rpartition(".")
    if not block:
        return ""
    linears = [own for own, module in layer.get_submodule(block).named_modules() if isinstance(module, nn.Linear)]
    return block if len(linears) > 1 and name in linears and "attn" not in block else ""


def _whole(work: Work, block: str, inputs: list[Tensor], targets: list[Tensor], last: Solved) -> Iterator[Solved]:
    """All linears of an MLP fitted together, kept where the batches held out are given better."""
    module = work.pruned.module.get_submodule(block)
    paths = [name for name, own in module.named_modules() if isinstance(own, nn.Linear)]
    start = {f"{path}.weight": module.get_submodule(path).weight.detach().float() for path in paths}  # type: ignore[operator]

    def run(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(module, weights, (x,))
        return found

    held = held_batches(len(inputs), True)
    fitted = [b for b in range(len(inputs)) if b not in held]
    found = gauss_newton.fit(
        run, start, [inputs[b] for b in fitted], [targets[b] for b in fitted], rounds=work.settings.rounds
    )

    def missed(weights: dict[str, Tensor]) -> float:
        return sum((run(weights, inputs[b]) - targets[b]).square().sum().item() for b in held)

    if held and missed(found) >= missed(start):
        return
    for path in paths:
        own = module.get_submodule(path)
        bias = own.bias.data if isinstance(own.bias, Tensor) else None
        values = set_weights(own, found[f"{path}.weight"], bias)
        yield Solved(f"{block}.{path}", values, last.damping, False, last.tokens, 0)


def held_batches(count: int, wanted: bool) -> set[int]:
    """The batches that judge what the others were fitted to; none when there is only one."""
    every = min(HELD_OUT, count)
    return {b for b in range(count) if b % every == every - 1} if wanted and count > 1 else set()


def _run_to_end(work: Work) -> list[Tensor]:
    """What leaves the uncut layer, or the last of the dropped ones that follow it."""
    visit = work.dense
    while visit.index < work.end:
        visit = next(work.uncut)
    return visit.run()


class _Pair:
    """The sums of one stage: over batches that are fitted, and over those held out to judge a damping."""

    def __init__(self, work: Work, stage: Stage):
        self.settings = work.settings
        self.stage = stage
        self.modules = [work.pruned.module.get_submodule(linear.path) for linear in stage.linears]
        self.held_batches = held_batches(len(work.pruned.batches), work.settings.damping is None)
        weights = [weight_of(module) for module in self.modules]
        self.fitted = solve.sums(weights[0].shape[1], sum(len(weight) for weight in weights), weights[0].device)
        self.held = solve.Held()

    def add(self, batch: int, inputs: Tensor, wanted: Tensor) -> None:
        """Add a batch's tokens: inputs (tokens, inputs), wanted outputs (tokens, outputs)."""
        if batch in self.held_batches:
            self.held.add(inputs, wanted)
        else:
            solve.add(self.fitted, inputs, wanted)

    def solved(self) -> Iterator[Solved]:
        """Put new weights into the pruned layer, and give them."""
        weights = [weight_of(module).float() for module in self.modules]
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        biases = [module.bias.data.float() for module in self.modules if isinstance(module.bias, Tensor)]
        bias = torch.cat(biases) if len(biases) == len(self.modules) else None
        intercept = self.settings.intercept and bias is not None
        damping = DEFAULT_DAMPING if self.settings.damping is None else self.settings.damping
        release()  # what running the layer left behind
        if self.held_batches:
            damping = solve.best_damping(self.fitted, self.held, weight, bias, DAMPINGS, intercept=intercept)
            self.held.join(self.fitted)
        found = solve.ridge(self.fitted, weight, bias, damping=damping, intercept=intercept)
        yield from self._apply(found, found.damping > damping, int(self.fitted.tokens))

    def _apply(self, found: solve.Solution, raised: bool, tokens: int) -> Iterator[Solved]:
        at = 0
        for linear, module in zip(self.stage.linears, self.modules, strict=True):
            size, inputs = weight_of(module).shape
            bias = None if found.bias is None else found.bias[at : at + size]
            values = set_weights(module, found.weight[at : at + size], bias)
            at += size
            yield Solved(linear.path, values, found.damping, raised, tokens, inputs)
