"""What one walk gathers for scoring: running sums over the inputs of the linears that read a group's units."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from prune.errors import PruneError
from prune.model.groups import Slice
from prune.model.walk import Visit
from prune.remove import routing

# name -> what a batch of inputs (tokens, features) adds; each is divided by the tokens seen at the end
STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "square": lambda x: x.square().sum(0),  # mean square of each feature
    "mean": lambda x: x.sum(0),
    "gram": lambda x: x.T @ x,  # (features, features)
}

Statistics = dict[str, Tensor]  # per consumer


def gather(
    visit: Visit,
    root: str,
    consumers: Iterable[Slice],
    wanted: Iterable[str],
    run: Callable[[int], Tensor] | None = None,
) -> dict[str, Statistics]:
    """Run a layer over all batches and sum up what enters the linears that `consumers` name.

    `root` is the layer's path, and `run` runs a batch where something else looks on (default: `visit.forward`). Gives
    consumer tensor name -> statistic name -> float32 tensor, a mean over tokens. Raises PruneError naming the layer
    where one is not finite.
    """
    run = run or visit.forward
    consumers, kinds = list(consumers), list(wanted)
    sums: dict[str, Statistics] = {piece.name: {} for piece in consumers}
    tokens = 0
    visit.outputs = []
    with _listening(visit.module, root, consumers, sums, kinds) as state:
        for batch in range(len(visit.batches)):
            state["mask"] = visit.mask(batch)
            visit.outputs.append(run(batch))
            tokens += visit.tokens(batch)
    for name, found in sums.items():
        if not all(bool(torch.isfinite(total).all()) for total in found.values()):
            raise PruneError(
                f"what enters {name.rpartition('.')[0]} is not finite, or its square is not;"
                " compute in float32 or bfloat16"
            )
    return {name: {key: total / tokens for key, total in found.items()} for name, found in sums.items()}


def module_path(piece: Slice, root: str) -> str:
    """The module within the layer at `root` that holds a slice's parameter."""
    return piece.name.removeprefix(root + ".").rsplit(".", 1)[0]


State = dict[str, Tensor | None]  # "mask": which positions (batch, length) are text


@contextmanager
def _listening(
    layer: nn.Module, root: str, consumers: list[Slice], sums: dict[str, Statistics], kinds: list[str]
) -> Iterator[State]:
    """Hooks that add each input to the sums; padded positions, per the state's mask, are left out."""
    state: State = {"mask": None}
    with ExitStack() as hooks:
        for piece in consumers:
            module = layer.get_submodule(module_path(piece, root))
            if piece.stacked:
                hooks.enter_context(routing.one_by_one(module, _expert_inputs(sums[piece.name], kinds, state, module)))
            else:
                handle = module.register_forward_pre_hook(_inputs(sums[piece.name], kinds, state))
                hooks.callback(handle.remove)
        yield state


def _inputs(sums: Statistics, kinds: list[str], state: State) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        mask = state["mask"]
        inputs = args[0]
        if mask is not None:  # some modules see their inputs as one row of tokens
            inputs = inputs[mask] if inputs.ndim > 2 else inputs[mask.reshape(-1)]
        inputs = inputs.reshape(-1, inputs.shape[-1]).float()
        for kind in kinds:
            added = STATISTICS[kind](inputs)
            sums[kind] = sums[kind] + added if kind in sums else added

    return hook


def _expert_inputs(sums: Statistics, kinds: list[str], state: State, experts: nn.Module) -> routing.Watch:
    """Adds up what enters each expert's down_proj: (experts x inner,), or (experts, inner, inner) for the gram."""
    count, _, inner = experts.down_proj.shape  # type: ignore[misc]

    def watch(call: routing.Call) -> Tensor:
        mask = state["mask"]
        inputs = call.inner if mask is None else call.inner[mask.reshape(-1)[call.tokens]]
        for kind in kinds:
            added = STATISTICS[kind](inputs.float())
            total = sums.setdefault(kind, added.new_zeros(count * inner if added.ndim == 1 else (count, *added.shape)))
            total.view(count, *added.shape)[call.expert] += added
        return call.inner

    return watch
