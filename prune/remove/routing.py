"""Experts run one by one, so that each can be watched and changed, and routers told to leave some out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prune.model.groups import Group
from prune.model.model import Model
from prune.model.walk import Batch, Visit, walk

OUT = -1e30  # a router logit whose softmax is exactly zero in every dtype


@dataclass(frozen=True)
class Call:
    """One expert's share of a batch."""

    expert: int
    tokens: Tensor  # (n,) positions in the batch's row of tokens
    gates: Tensor  # (n,) the weights that the router gave them
    inner: Tensor  # (n, inner) what enters down_proj
    finish: Callable[[Tensor], Tensor]  # inner -> (n, width), the expert's output before the gate


Watch = Callable[[Call], Tensor]  # sees a call and gives the inner state to go on with


@contextmanager
def one_by_one(experts: nn.Module, watch: Watch) -> Iterator[None]:
    """While inside, a stacked experts module computes expert after expert, and `watch` sees each.

    `experts` has gate_up_proj (experts, 2 x inner, width), down_proj (experts, width, inner) and act_fn, as the
    mixtures of transformers 5 do.
    """
    module: Any = experts

    def forward(hidden: Tensor, chosen: Tensor, gates: Tensor) -> Tensor:  # (tokens, width), (tokens, top k) twice
        total = torch.zeros_like(hidden)
        for expert in range(len(module.gate_up_proj)):
            tokens, place = (chosen == expert).nonzero(as_tuple=True)
            if not len(tokens):
                continue
            gate, up = nn.functional.linear(hidden[tokens], module.gate_up_proj[expert]).chunk(2, dim=-1)
            down = module.down_proj[expert]
            call = Call(
                expert,
                tokens,
                gates[tokens, place],
                module.act_fn(gate) * up,
                partial(nn.functional.linear, weight=down),
            )
            output = call.finish(watch(call)) * call.gates[:, None]
            total.index_add_(0, tokens, output.to(total.dtype))
        return total

    module.forward = forward
    try:
        yield
    finally:
        del module.forward


@contextmanager
def without(router: nn.Module, experts: Tensor) -> Iterator[None]:
    """While inside, a router gives the `experts` (n,) a logit of minus infinity.

    The router computes its logits and its choice in one go, so the logits are reached through its weight: one more
    input, which is always 1, has a weight of minus infinity for those experts and 0 for the others.
    """
    module: Any = router
    weight, width = module.weight, module.hidden_dim
    column = torch.zeros(len(weight), 1, dtype=weight.dtype, device=weight.device)
    column[experts.to(weight.device)] = OUT
    handle = module.register_forward_pre_hook(
        lambda _, args: (torch.cat([args[0], torch.ones_like(args[0][..., :1])], dim=-1), *args[1:])
    )
    module.weight, module.hidden_dim = nn.Parameter(torch.cat([weight, column], dim=1), requires_grad=False), width + 1
    try:
        yield
    finally:
        handle.remove()
        module.weight, module.hidden_dim = weight, width


def summed(
    model: Model,
    groups: Sequence[Group],
    batches: Sequence[Batch],
    value: Callable[[Call], Tensor],
    **options: Any,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Per group of experts, the sum of `value` (n,) over each expert's tokens and the number of those, from one walk.

    Both are float32 (experts,); padding is left out. `options` are those of the walk.
    """
    found = {}
    by_layer = {group.layer: group for group in groups}
    for visit in walk(model, batches, **options):
        group = by_layer.get(visit.index)
        if group is not None:
            found[group.name] = _summed_here(visit, module_of(group, model.layer(visit.index)), group.units, value)
    return found


def module_of(group: Group, root: str) -> str:
    """The path, within the layer at `root`, of the module that holds a group's stacked experts."""
    stacked = next(piece.name for piece in group.slices if piece.role == "follower")
    return stacked.removeprefix(root + ".").rpartition(".")[0]


def _summed_here(visit: Visit, path: str, experts: int, value: Callable[[Call], Tensor]) -> tuple[Tensor, Tensor]:
    total, count = torch.zeros(experts), torch.zeros(experts)
    state: dict[str, Tensor | None] = {}

    def watch(call: Call) -> Tensor:
        mask = state["mask"]
        kept = slice(None) if mask is None else mask.reshape(-1)[call.tokens]
        values = value(call)[kept]
        total[call.expert] += values.sum().cpu()
        count[call.expert] += len(values)
        return call.inner

    visit.outputs = []
    with one_by_one(visit.module.get_submodule(path), watch):
        for batch in range(len(visit.batches)):
            state["mask"] = visit.mask(batch)
            visit.outputs.append(visit.forward(batch))
    return total, count
