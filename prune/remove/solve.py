"""Ridge least squares from running sums: the weights that best give wanted outputs for the inputs a linear now sees.

Sums over tokens are all that is kept, so any number of tokens is solved in the memory of one Gram matrix.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from prune.errors import PruneError

DOUBLE_UP_TO = 4096  # inputs; wider Grams are summed and solved in float32
LEAST_DAMPING = 1e-8  # what a damping of zero is raised to when the Gram is singular
BLOCKS, LEAST_BLOCK = 4, 64  # a Gram's columns come in so many blocks, of as many at least
ROWS = 512  # outputs that are solved for at a time
TRIES = 16  # tenfold steps of damping; the last is far above any rounding error


@dataclass(frozen=True)
class Sums:
    """Sums over tokens of inputs x and wanted outputs t; `add` changes the tensors in place."""

    gram: Tensor  # (inputs, inputs), sum of x x'
    cross: Tensor  # (inputs, outputs), sum of x t'
    inputs: Tensor  # (inputs,)
    outputs: Tensor  # (outputs,)
    energy: Tensor  # (), sum of |t|^2
    tokens: Tensor  # ()


@dataclass(frozen=True)
class Solution:
    """A linear's new weight (outputs, inputs) and bias (outputs,), and the damping that it took to find them."""

    weight: Tensor
    bias: Tensor | None
    damping: float


def sums(inputs: int, outputs: int, device: str | torch.device = "cpu") -> Sums:
    """Sums of no tokens, in float64 where that is affordable."""
    double = inputs <= DOUBLE_UP_TO and torch.device(device).type != "mps"
    kind = torch.float64 if double else torch.float32
    shapes: list[tuple[int, ...]] = [(inputs, inputs), (inputs, outputs), (inputs,), (outputs,), (), ()]
    return Sums(*(torch.zeros(shape, dtype=kind, device=device) for shape in shapes))


def add(into: Sums, x: Tensor, target: Tensor) -> None:
    """Add tokens: inputs (tokens, inputs) and wanted outputs (tokens, outputs), float32."""
    _add_gram(into.gram, x)
    into.cross.add_(x.T @ target)
    into.inputs.add_(x.sum(0))
    into.outputs.add_(target.sum(0))
    into.energy.add_(target.square().sum())
    into.tokens.add_(len(x))


def _add_gram(gram: Tensor, x: Tensor) -> None:
    """Add x'x, of which what lies left of the diagonal is mirrored, block by block, rather than computed."""
    size = max(-(-x.shape[1] // BLOCKS), LEAST_BLOCK)
    for start in range(0, x.shape[1], size):
        stop = start + size
        found = x[:, start:stop].T @ x[:, start:]  # (block, block and what is right of it)
        gram[start:stop, start:] += found
        gram[stop:, start:stop] += found[:, size:].T


def merge(into: Sums, other: Sums) -> None:
    """Add the sums over other tokens."""
    for name in Sums.__dataclass_fields__:
        getattr(into, name).add_(getattr(other, name))


class Held:
    """Tokens that judge: their rows while they are fewer than the inputs, and from there on sums, which take less."""

    def __init__(self) -> None:
        self.rows: list[tuple[Tensor, Tensor]] = []
        self.sums: Sums | None = None

    def add(self, x: Tensor, target: Tensor) -> None:
        """Add tokens: inputs (tokens, inputs) and wanted outputs (tokens, outputs), float32."""
        self.rows.append((x, target))
        if self.sums is not None or sum(len(own) for own, _ in self.rows) > x.shape[1]:
            self.sums = self.sums or sums(x.shape[1], target.shape[1], x.device)
            self._pour(self.sums)

    def _pour(self, into: Sums) -> None:
        for x, target in self.rows:
            add(into, x, target)
        self.rows.clear()

    def join(self, into: Sums) -> None:
        """Add all tokens to the sums of others; nothing is held from then on."""
        self._pour(into)
        if self.sums is not None:
            merge(into, self.sums)
            self.sums = None

    def error(self, weight: Tensor, bias: Tensor | None) -> float:
        """The mean over tokens of |t - W x - b|^2."""
        if self.sums is not None:
            return error(self.sums, weight, bias)
        missed = [(target - F.linear(x, weight, bias)).square().sum().double() for x, target in self.rows]
        return (sum(missed[1:], missed[0]) / sum(len(x) for x, _ in self.rows)).item()


def ridge(found: Sums, weight: Tensor, bias: Tensor | None, *, damping: float, intercept: bool = False) -> Solution:
    """The weight W (and with `intercept` the bias) that minimises |t - W x - b|^2 + damping x D |W - W0|^2.

    D is the mean of the Gram's diagonal and W0 the `weight` (outputs, inputs) that stands there now; without
    `intercept` the `bias` (outputs,) stays as it is. `damping` is raised tenfold until Cholesky succeeds, and what
    was used is given back; where all inputs are zero, W is W0. Beside the sums it takes the memory of a factor. Raises
    PruneError where the sums are not finite.
    """
    gram, mean = found.gram, found.inputs / found.tokens
    rounding = torch.finfo(gram.dtype).eps * gram.diagonal().mean()
    with _centred(found, mean) if intercept else nullcontext():
        scale = unit(gram, least=rounding)
        lower, used = factor(gram, damping, scale)
    fixed = None if intercept or bias is None else bias.to(gram)
    new = torch.empty_like(weight)
    biases = torch.empty(len(weight), dtype=gram.dtype, device=gram.device)
    for rows in _blocks(len(weight)):
        cross = found.cross[:, rows]  # (inputs, outputs of the block), its means or a fixed bias taken out
        if intercept:
            cross = torch.addr(cross, mean, found.outputs[rows], alpha=-1)
        elif fixed is not None:
            cross = torch.addr(cross, found.inputs, fixed[rows], alpha=-1)
        solved = torch.cholesky_solve(torch.add(cross, weight[rows].T.to(gram) * (used * scale)), lower).T
        new[rows] = solved.to(weight.dtype)
        biases[rows] = (found.outputs[rows] - solved @ found.inputs) / found.tokens
    return Solution(new, biases.to(weight.dtype) if intercept else bias, used)


@contextmanager
def _centred(found: Sums, mean: Tensor) -> Iterator[None]:
    """While inside, the Gram is that of inputs without their mean, in its own memory."""
    found.gram.addr_(mean, found.inputs, alpha=-1)
    try:
        yield
    finally:
        found.gram.addr_(mean, found.inputs)


def unit(gram: Tensor, *, least: Tensor | None = None) -> Tensor:
    """What a damping of 1 adds to a Gram's diagonal: its mean, or 1 where the Gram is zero; a scalar.

    `least` is how far a Gram that is the difference of two may be off by rounding.
    """
    kind, mean = torch.finfo(gram.dtype), gram.diagonal().mean()
    if least is not None:
        mean = torch.maximum(mean, least)
    return torch.where(mean < kind.tiny, torch.ones_like(mean), mean)


def factor(gram: Tensor, damping: float, scale: Tensor) -> tuple[Tensor, float]:
    """The Cholesky factor of a Gram, damped in its own memory, and the damping that it took, raised tenfold if need be.

    Raises PruneError for a Gram that is not finite, or has no factor after all tries.
    """
    diagonal = gram.diagonal().clone()
    if not bool(torch.isfinite(diagonal).all()):
        raise PruneError("a linear's inputs are not finite, or their squares are not; compute in float32 or bfloat16")
    try:
        for _ in range(TRIES):
            gram.diagonal().copy_(diagonal + damping * scale)
            found, failed = torch.linalg.cholesky_ex(gram)
            if not failed and bool(torch.isfinite(found.diagonal()).all()):
                return found, damping
            damping = max(damping * 10, LEAST_DAMPING)
    finally:
        gram.diagonal().copy_(diagonal)
    raise PruneError(f"the Gram of a linear's inputs cannot be solved, though damped by {damping:g} times its mean")


def _blocks(outputs: int) -> Iterator[slice]:
    """The outputs, a block at a time: what is computed for all of them at once takes as much memory as the weight."""
    return (slice(start, start + ROWS) for start in range(0, outputs, ROWS))


def error(found: Sums, weight: Tensor, bias: Tensor | None = None) -> float:
    """The mean over tokens of |t - W x - b|^2, from the sums alone."""
    total = found.energy.clone()
    for rows in _blocks(len(weight)):
        w = weight[rows].to(found.gram)
        total += ((w @ found.gram) * w).sum() - 2 * (w.T * found.cross[:, rows]).sum()
        if bias is not None:
            b = bias[rows].to(found.gram)
            total += found.tokens * b.square().sum() + 2 * b @ (w @ found.inputs - found.outputs[rows])
    return (total / found.tokens).item()


def best_damping(
    fitted: Sums, held: Held, weight: Tensor, bias: Tensor | None, choices: Iterable[float], *, intercept: bool = False
) -> float:
    """The damping among `choices` whose solution for the fitted tokens errs least on the tokens held out."""

    def miss(damping: float) -> float:
        found = ridge(fitted, weight, bias, damping=damping, intercept=intercept)
        return held.error(found.weight, found.bias)

    return min(choices, key=miss)
