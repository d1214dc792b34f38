"""Gauss-Newton: least squares for a function of several weights at once, by rounds of linear least squares.

Each round linearises the function and solves the damped normal equations by conjugate gradients, from products with the
Jacobian alone; a step that does not lower the error is halved until it does. No learning rate, nothing random. Source:
Nocedal and Wright, Numerical Optimization, chapters 7 and 10.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.func import jvp, vjp

Weights = dict[str, Tensor]
PRODUCTS = 15  # conjugate gradient steps in a round
ENOUGH = 1e-3  # relative residual of the normal equations at which they count as solved
SHORTEST = 1 / 16  # of a full step


def fit(
    function: Callable[[Weights, Tensor], Tensor],
    start: Mapping[str, Tensor],
    inputs: Sequence[Tensor],
    wanted: Sequence[Tensor],
    *,
    rounds: int,
    pull: float = 1e-3,
) -> Weights:
    """Weights near `start` for which `function(weights, x)` comes closest to what is wanted, over all tokens.

    `inputs` and `wanted` are (tokens, features) by batch, float32. `pull` holds each weight to its start: moving it by
    its own size costs this share of the mean square of what is wanted.
    """
    tokens = sum(len(x) for x in inputs)
    energy = sum(t.square().sum().item() for t in wanted) / tokens
    pulls = {name: pull * energy / max(w.square().sum().item(), 1e-30) for name, w in start.items()}
    weights = dict(start)

    def missed(trial: Weights) -> float:
        total = sum((function(trial, x) - t).square().sum().item() for x, t in zip(inputs, wanted, strict=True))
        return total / tokens + sum(pulls[n] * (trial[n] - start[n]).square().sum().item() for n in trial)

    current = missed(weights)
    for _ in range(rounds):
        slope = {name: pulls[name] * (start[name] - w) for name, w in weights.items()}
        for x, t in zip(inputs, wanted, strict=True):
            found, back = vjp(_at(function, x), weights)[:2]
            _add(slope, back((t - found) / tokens)[0])
        step = _solved(partial(_curved, function, weights, inputs, pulls, tokens), slope)
        size = 1.0
        while size >= SHORTEST:
            trial = {name: w + size * step[name] for name, w in weights.items()}
            error = missed(trial)
            if error < current:
                break
            size /= 2
        else:
            return weights
        weights, current = trial, error
    return weights


def _curved(
    function: Callable[[Weights, Tensor], Tensor],
    weights: Weights,
    inputs: Sequence[Tensor],
    pulls: Mapping[str, float],
    tokens: int,
    direction: Weights,
) -> Weights:
    """(J'J + pulls) times a direction."""
    total = {name: pulls[name] * d for name, d in direction.items()}
    for x in inputs:
        change = jvp(_at(function, x), (weights,), (direction,))[1]
        back = vjp(_at(function, x), weights)[1]
        _add(total, back(change / tokens)[0])
    return total


def _at(function: Callable[[Weights, Tensor], Tensor], x: Tensor) -> Callable[[Weights], Tensor]:
    return lambda weights: function(weights, x)


def _solved(matrix: Callable[[Weights], Weights], right: Weights) -> Weights:
    """Conjugate gradients for matrix(x) = right, from zero."""
    found = {name: torch.zeros_like(value) for name, value in right.items()}
    rest = dict(right)
    direction = dict(right)
    square = first = _dot(rest, rest)
    for _ in range(PRODUCTS):
        if square <= ENOUGH**2 * first:
            break
        image = matrix(direction)
        length = square / _dot(direction, image)
        found = {name: value + length * direction[name] for name, value in found.items()}
        rest = {name: value - length * image[name] for name, value in rest.items()}
        previous, square = square, _dot(rest, rest)
        direction = {name: value + square / previous * direction[name] for name, value in rest.items()}
    return found


def _dot(one: Weights, other: Weights) -> float:
    return sum((one[name] * other[name]).sum().item() for name in one)


def _add(total: Weights, more: Mapping[str, Tensor]) -> None:
    for name in total:
        total[name] = total[name] + more[name]
