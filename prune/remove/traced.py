"""Channels of any network: which belong together is found by tracing it with torch-pruning's dependency graph.

Fang et al., DepGraph, https://arxiv.org/abs/2301.12900. For networks that no family knows. Tracing stands behind a
time limit, and a group counts only if masking its units and slicing them away give the same outputs.
"""

from __future__ import annotations

import copy
import ctypes
import math
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from prune.errors import PruneError, unknown
from prune.model.groups import Group, Slice
from prune.remove.narrow import to_shapes

TOLERANCE = 1e-4  # largest difference between masked and sliced, relative to the largest output
# What a network's own code raises when shapes are not what it expects.
FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)  # one mean a channel; norms over channels change when one goes


@dataclass(frozen=True)
class Traced:
    """A network with its groups of channels. The module is the user's own and is never changed.

    `example` is what its forward takes. `left_out` says which layers stay whole, and why.
    """

    module: nn.Module
    example: tuple[Any, ...]
    groups: list[Group]
    left_out: Mapping[str, str]


def trace(
    module: nn.Module, example: Tensor | tuple[Any, ...], *, ignore: Sequence[str] = (), seconds: float = 60.0
) -> Traced:
    """Find the groups of channels of a network, given example inputs for its forward.

    `ignore` names layers whose outputs stay whole, or modules that hold such layers. What cannot be cut (norms over
    channels, grouped convolutions, attention, the network's outputs) is left whole. Raises PruneError when tracing and
    checking together take longer than `seconds`, fail or find nothing, and for an unknown name in `ignore`.
    """
    inputs = example if isinstance(example, tuple) else (example,)
    checked: Traced = within(seconds, lambda: _checked(_found(module, inputs, ignore)))
    if not checked.groups:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(checked.left_out.items())[:3])
        raise PruneError(f"no channels that can be cut were found ({why or 'no convolution or linear layer'})")
    return replace(checked, module=module)


def _found(module: nn.Module, inputs: tuple[Any, ...], ignore: Sequence[str]) -> Traced:
    """A copy of the network (the tracer turns gradients on) with its groups as the tracer gives them."""
    traced = copy.deepcopy(module).eval()
    groups, left_out = [], {}
    found = _graph(traced, inputs)
    layers = {target for _, items in found for target, outputs, *_ in items if outputs}
    for missing in (name for name in ignore if not any(_inside(layer, name) for layer in layers)):
        raise unknown("layer to ignore", missing, layers)
    for name, items in found:
        asked = any(_inside(target, each) for target, outputs, *_ in items if outputs for each in ignore)
        group = "you asked for it" if asked else _group(name, items, dict(traced.named_modules()))
        if isinstance(group, Group):
            groups.append(group)
        else:
            left_out[name] = group
    return Traced(traced, inputs, groups, left_out)


def _checked(whole: Traced) -> Traced:
    """Only the groups whose masking and slicing give the same outputs."""
    if _differences(whole, whole.groups) <= TOLERANCE:
        return whole
    # one or several are wrong: each is tried alone
    good = [group for group in whole.groups if _differences(whole, [group]) <= TOLERANCE]
    bad = {g.name: "masking and slicing differ" for g in whole.groups if g not in good}
    return replace(whole, groups=good, left_out={**whole.left_out, **bad})


Item = tuple[str, bool, list[int], list[int]]  # module or parameter, whether its outputs, positions, units


def _graph(module: nn.Module, inputs: tuple[Any, ...]) -> list[tuple[str, list[Item]]]:
    """Every group the tracer finds, by the name of its first layer."""
    try:
        import torch_pruning
    except ImportError as error:
        raise PruneError("tracing needs torch-pruning; install it with: pip install torch-pruning") from error
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    names = {held: name for name, held in [*module.named_modules(), *module.named_parameters()]}
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        graph = torch_pruning.DependencyGraph().build_dependency(
            module, example_inputs=inputs, output_transform=tensors_of
        )
        return [_items(graph, group, names) for group in graph.get_all_groups()]


def _items(graph: Any, group: Any, names: Mapping[Any, str]) -> tuple[str, list[Item]]:
    items = []
    for item in (group[i] for i in range(len(group))):
        target = item.dep.target.module
        if target in names:
            outputs = bool(graph.is_out_channel_pruning_fn(item.dep.handler))
            items.append((names[target], outputs, list(item.idxs), list(item.root_idxs)))
    return items[0][0], items


def _inside(layer: str, name: str) -> bool:
    return layer == name or layer.startswith(f"{name}.")


def tensors_of(output: Any) -> list[Tensor]:
    """The tensors in a network's output, at least one. Raises PruneError."""
    if found := _flat(output):
        return found
    raise PruneError("the network's output holds no tensor; it must be tensors, in lists, tuples or mappings")


def _flat(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, list | tuple) else ()
    return [tensor for value in values for tensor in _flat(value)]


def _group(name: str, items: Sequence[Item], modules: Mapping[str, nn.Module]) -> Group | str:
    """The group as slices, or why it stays whole."""
    units = len(items[0][2])
    slices: dict[tuple[str, int], Slice] = {}
    for target, outputs, positions, roots in items:
        parts = _parts(modules.get(target), target, outputs)
        if isinstance(parts, str):
            return parts
        index = _index(positions, roots, units)
        if index is None:
            return f"{target} mixes channels in a way that is not understood"
        for part in parts:
            before = slices.get((part.name, part.dim))
            both = index if before is None else torch.cat([before.index, index], dim=1).unique(dim=1)
            slices[part.name, part.dim] = replace(part, index=both)
    if not any(piece.role == "consumer" for piece in slices.values()):
        return "nothing in the network reads it: it is an output"
    return Group(name, "traced", None, units, tuple(slices.values()), partitions=(tuple(range(units)),))


def _index(positions: list[int], roots: list[int], units: int) -> Tensor | None:
    """Positions of every unit, (units, k), or None when units have unequally many."""
    rows: list[list[int]] = [[] for _ in range(units)]
    for position, root in zip(positions, roots, strict=True):
        if root is None or not 0 <= root < units:
            return None
        rows[root].append(position)
    return torch.tensor(rows) if len({len(row) for row in rows}) == 1 else None


def _parts(module: nn.Module | None, name: str, outputs: bool) -> list[Slice] | str:
    """What of a module goes along with its outputs or its inputs, indices left open; or why nothing may."""
    empty = torch.empty(0, 0, dtype=torch.long)
    follow = [
        leaf for leaf in ("weight", "bias", "running_mean", "running_var") if getattr(module, leaf, None) is not None
    ]
    if isinstance(module, CONVOLUTIONS) and module.groups > 1 and not _depthwise(module):
        return f"{name} is a convolution in groups"
    if isinstance(module, NORMS) or (isinstance(module, CONVOLUTIONS) and module.groups > 1):
        return [Slice(f"{name}.{leaf}", 0, empty, "follower") for leaf in follow]
    if isinstance(module, nn.PReLU):
        return [Slice(f"{name}.weight", 0, empty, "follower")] if len(module.weight) > 1 else []
    if isinstance(module, (nn.Linear, *CONVOLUTIONS)):
        if not outputs:
            return [Slice(f"{name}.weight", 1, empty, "consumer")]
        return [Slice(f"{name}.{leaf}", 0, empty, "producer") for leaf in follow]
    if isinstance(module, TRANSPOSED):
        return f"{name} is a transposed convolution, and those stay whole"
    if module is None:
        return f"{name} is a parameter of its own"
    return f"{name} is a {type(module).__name__}, which runs over the channels"


def _depthwise(convolution: Any) -> bool:
    return bool(convolution.groups == convolution.in_channels == convolution.out_channels)


def _differences(traced: Traced, groups: Sequence[Group]) -> float:
    """Masked against sliced when every other unit of these groups goes; infinite when slicing fails."""
    plan = {group.name: list(range(0, group.units, 2)) for group in groups if group.units > 1}
    if not plan:
        return 0.0
    try:
        return difference(traced, plan, _sliced(traced, plan))
    except FAILURES:
        return math.inf


def difference(traced: Traced, plan: Mapping[str, Sequence[int]], small: nn.Module) -> float:
    """The largest difference between `small` and the module with the removed units masked, relative to the outputs.

    Infinite where outputs have other shapes or are not numbers. Raises PruneError when there are no outputs to compare.
    """
    masked: dict[str, Tensor] = {}
    for piece, positions in _removed(traced, plan):
        if piece.role == "consumer":
            weight = masked.get(piece.name, traced.module.get_parameter(piece.name).detach()).clone()
            masked[piece.name] = weight.index_fill(piece.dim, positions.to(weight.device), 0)
    with torch.no_grad(), evaluating(traced.module), evaluating(small):
        expected = tensors_of(functional_call(traced.module, masked, traced.example))
        found = tensors_of(small(*traced.example))
    if [one.shape for one in expected] != [other.shape for other in found]:
        return math.inf
    return max(_gap(one, other) for one, other in zip(expected, found, strict=True))


def _gap(one: Tensor, other: Tensor) -> float:
    scale = one.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    gap = float((one - other).abs().max() / scale)
    return math.inf if math.isnan(gap) else gap


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module is in evaluation mode while inside; every part then goes back to its own."""
    before = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training


def _removed(traced: Traced, plan: Mapping[str, Sequence[int]]) -> Iterator[tuple[Slice, Tensor]]:
    for group in traced.groups:
        removed = sorted(set(range(group.units)) - set(plan.get(group.name, range(group.units))))
        for piece in group.slices if removed else ():
            yield piece, piece.index[removed].reshape(-1)


def _sliced(traced: Traced, plan: Mapping[str, Sequence[int]]) -> nn.Module:
    state = {name: tensor.detach() for name, tensor in traced.module.state_dict().items()}
    masks: dict[tuple[str, int], Tensor] = {}
    for piece, positions in _removed(traced, plan):
        size = state[piece.name].shape[piece.dim]
        masks.setdefault((piece.name, piece.dim), torch.ones(size, dtype=torch.bool))[positions] = False
    for (name, dim), mask in masks.items():
        state[name] = state[name].index_select(dim, mask.nonzero().squeeze(1).to(state[name].device))
    small = to_shapes(copy.deepcopy(traced.module), {name: tuple(tensor.shape) for name, tensor in state.items()})
    small.load_state_dict(state, strict=True)
    return small


def cut(traced: Traced, plan: Mapping[str, Sequence[int]]) -> nn.Module:
    """A new module without the channels that `plan` (group -> kept units) drops; the user's own is unchanged.

    Raises PruneError for an unknown group, one left empty, or when the result does not compute what the masked
    network computes on the example.
    """
    known = {group.name: group for group in traced.groups}
    for name, kept in plan.items():
        if name not in known:
            raise PruneError(f"no such group of channels; choices: {', '.join(known)}", where=name)
        units = known[name].units
        if not kept or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= units:
            raise PruneError(f"kept channels must be ascending, from 0 to {units - 1}, at least one", where=name)
    small = _sliced(traced, plan)
    found = difference(traced, plan, small)
    if not found <= TOLERANCE:
        raise PruneError(f"masked and sliced outputs differ by {found:.1e} of their scale, over {TOLERANCE:.0e}")
    return small


def within(seconds: float, function: Callable[[], Any]) -> Any:
    """What `function` gives, computed in a thread that is told to stop after `seconds`. Raises PruneError then."""
    ident: list[int] = []

    def run() -> Any:
        ident.append(threading.get_ident())
        return function()

    pool = ThreadPoolExecutor(1)
    future = pool.submit(run)
    try:
        return future.result(seconds)
    except FutureTimeout:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident[0]), ctypes.py_object(SystemExit))
        raise PruneError(
            f"tracing did not end within {seconds:g} s; name modules to leave alone, or allow more"
        ) from None
    except FAILURES as error:
        raise PruneError(f"the network cannot be traced: {error}") from error
    finally:
        pool.shutdown(wait=False)
