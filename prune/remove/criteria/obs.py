"""Group OBS: the error that removing a unit leaves once the other weights have made up for it. https://arxiv.org/abs/2302.04089.

ZipLM (above), SlimGPT (https://arxiv.org/abs/2412.18110) and OSSCAR (https://arxiv.org/abs/2403.12983) are its kin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from prune.errors import PruneError
from prune.model.groups import Group
from prune.remove import solve
from prune.remove.gather import Statistics

KINDS = ("heads", "query_heads", "channels", "width")
NEEDS = ("gram",)
COMPENSATES = "weights"  # what is left is updated to make up for what was removed


def score(
    group: Group,
    weights: Callable[[str], Tensor],
    statistics: Mapping[str, Statistics],
    *,
    rounds: int = 32,
    damping: float = 1e-3,
) -> Tensor:
    """The error (per token) of the greedy run when the unit goes, float32 (units,): the order and the error curve.

    Sorted, the scores are the error that is left after 1, 2, ... units are gone; the last one's is that of all of them.
    Units go in at most `rounds` rounds of about as many each. `damping` is a multiple of the Gram's mean diagonal.

    Positions of the width are read by many linears at once, which no one order serves: each scores what its removal
    alone would cost all of them together.
    """
    if any(len(weights(piece.name).shape) > 2 for piece in group.consumers):
        raise PruneError(
            "criterion 'obs' does not score the channels of experts; choices: wanda, flap", where=group.name
        )
    total = torch.zeros(group.units)
    for piece in group.consumers:
        weight = weights(piece.name)
        weight = weight if piece.dim == 1 else weight.T
        gram = statistics[piece.name]["gram"]
        index = piece.index.to(gram.device)
        if group.kind == "width":
            total += alone(gram, weight, index, damping=damping).float().cpu()
        else:
            total += greedy(gram, weight, index, rounds=rounds, damping=damping).float().cpu()
    return total


def alone(gram: Tensor, weight: Tensor, index: Tensor, *, damping: float) -> Tensor:
    """What removing each unit alone costs: tr(W_g [(H^-1)_gg]^-1 W_g'), float64 (units,)."""
    kind = torch.float32 if gram.device.type == "mps" else torch.float64
    everyone = torch.ones(len(index), dtype=torch.bool, device=gram.device)
    return _costs(_inverse(gram.to(kind), damping), weight.to(gram.device, kind), index, everyone)


def greedy(gram: Tensor, weight: Tensor, index: Tensor, *, rounds: int, damping: float) -> Tensor:
    """The greedy run over units of a linear: float64 (units,), the error left right after each of them was removed.

    `gram` (inputs, inputs) of the linear's inputs, its `weight` (outputs, inputs) and the units' inputs `index`
    (units, k). With H the damped Gram, a unit g costs tr(W_g [(H^-1)_gg]^-1 W_g'); removing it changes the other
    weights by -W_g [(H^-1)_gg]^-1 (H^-1)_g, and H^-1 by block elimination.
    """
    kind = torch.float32 if gram.device.type == "mps" else torch.float64
    gram, weight = gram.to(kind), weight.to(gram.device, kind).clone()
    inverse = _inverse(gram, damping)
    units = len(index)
    left = torch.full((units,), torch.inf, dtype=kind, device=gram.device)
    alive = torch.ones(units, dtype=torch.bool, device=gram.device)
    spent = torch.zeros((), dtype=kind, device=gram.device)
    for size in _sizes(units, rounds):
        costs = _costs(inverse, weight, index, alive)
        order = torch.argsort(costs, stable=True)[:size]
        positions = index[order].reshape(-1)
        block = torch.linalg.inv(inverse[positions][:, positions])
        removed = weight[:, positions]
        joint = ((removed @ block) * removed).sum()
        shares = costs[order].clamp_min(0).cumsum(0)
        left[order] = spent + joint * shares / shares[-1].clamp_min(torch.finfo(kind).tiny)
        spent = spent + joint
        weight -= removed @ block @ inverse[positions]
        inverse = inverse - inverse[:, positions] @ block @ inverse[positions]
        alive[order] = False
    return left


def _inverse(gram: Tensor, damping: float) -> Tensor:
    """The inverse of the damped Gram, whose damping is raised until there is one."""
    return torch.cholesky_inverse(solve.factor(gram, damping, solve.unit(gram))[0])


def _sizes(units: int, rounds: int) -> list[int]:
    """How many units go in each round, the last ones one by one: they are few, and their order matters most."""
    ends = (
        sorted({round(units * (i + 1) / rounds) for i in range(rounds)} - {0})
        if units > rounds
        else range(1, units + 1)
    )
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def _costs(inverse: Tensor, weight: Tensor, index: Tensor, alive: Tensor) -> Tensor:
    """tr(W_g [(H^-1)_gg]^-1 W_g') of units that are there, infinity for the others: (units,)."""
    found = torch.full((len(index),), torch.inf, dtype=weight.dtype, device=weight.device)
    own = index[alive]  # (alive, k)
    blocks = torch.linalg.inv(inverse[own[:, :, None], own[:, None, :]])  # (alive, k, k)
    parts = weight[:, own].transpose(0, 1)  # (alive, outputs, k)
    found[alive] = ((parts @ blocks) * parts).sum((1, 2))
    return found
