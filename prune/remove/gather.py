"""What one walk gathers for scoring: running sums over the inputs of the linears that read a group's units."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from prune.model.groups import Slice
from prune.model.walk import Visit

# name -> what a batch of inputs (tokens, features) adds; each is divided by the tokens seen at the end
STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "square": lambda x: x.square().sum(0),  # mean square of each feature
    "mean": lambda x: x.sum(0),
    "gram": lambda x: x.T @ x,  # (features, features)
}

Statistics = dict[str, Tensor]  # per consumer


def gather(visit: Visit, root: str, consumers: Iterable[Slice], wanted: Iterable[str]) -> dict[str, Statistics]:
    """Run a layer over all batches and sum up what enters the linears that `consumers` name.

    `root` is the layer's path. Gives consumer tensor name -> statistic name -> float32 tensor, a mean over tokens.
    """
    modules = {piece.name: visit.module.get_submodule(module_path(piece, root)) for piece in consumers}
    sums: dict[str, Statistics] = {name: {} for name in modules}
    tokens = 0
    visit.outputs = []
    with _listening(modules, sums, wanted) as state:
        for batch in range(len(visit.batches)):
            state["mask"] = visit.mask(batch)
            visit.outputs.append(visit.forward(batch))
            mask = state["mask"]
            tokens += visit.inputs[batch].shape[:2].numel() if mask is None else int(mask.sum())
    return {name: {key: total / tokens for key, total in found.items()} for name, found in sums.items()}


def module_path(piece: Slice, root: str) -> str:
    """The module within the layer at `root` that holds a slice's parameter."""
    return piece.name.removeprefix(root + ".").rsplit(".", 1)[0]


@contextmanager
def _listening(
    modules: Mapping[str, nn.Module], sums: dict[str, Statistics], wanted: Iterable[str]
) -> Iterator[dict[str, Tensor | None]]:
    """Hooks that add each input to the sums; padded positions, per the state's mask, are left out."""
    state: dict[str, Tensor | None] = {"mask": None}
    kinds = list(wanted)

    def listen(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            mask = state["mask"]
            inputs = args[0] if mask is None else args[0][mask]
            inputs = inputs.reshape(-1, inputs.shape[-1]).float()
            for kind in kinds:
                added = STATISTICS[kind](inputs)
                sums[name][kind] = sums[name][kind] + added if kind in sums[name] else added

        return hook

    handles = [module.register_forward_pre_hook(listen(name)) for name, module in modules.items()]
    try:
        yield state
    finally:
        for handle in handles:
            handle.remove()
