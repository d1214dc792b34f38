"""The loss on logits, made a few tokens at a time: neither a student's nor a teacher's logits ever stand whole.

Each chunk's logits are made, judged, and turned into the gradient at once, in closed form: nothing of vocabulary size
is kept for the backward pass, and nothing is computed twice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from prune.recovery.divergences import forward, jsd, reverse, tvd
from prune.recovery.head import Head
from prune.recovery.softmax import gradient, log_softmax

DIVERGENCES = {"forward": forward, "reverse": reverse, "jsd": jsd, "tvd": tvd}
CHUNK = {"cpu": 2**21, "cuda": 2**25}  # logits of a chunk: 8 MB of float32 stay in a CPU's cache, 128 MB fill a GPU


@dataclass(frozen=True)
class Logits:
    """How a student's logits are judged.

    loss = alpha * temperature^2 * divergence(teacher, student) + (1 - alpha) * cross-entropy with the labels, both
    means over the tokens that are predicted. `beta` is the teacher's share of the middle that jsd compares with.
    """

    divergence: Literal["forward", "reverse", "jsd", "tvd"] = "forward"
    temperature: float = 2.0
    alpha: float = 0.5
    beta: float = 0.5


@dataclass(frozen=True)
class Dense:
    """A teacher at hand: its hidden states (tokens, width), its head, and how many ids both vocabularies share."""

    hidden: Tensor
    head: Head
    shared: int

    def log_p(self, part: slice, temperature: float) -> Tensor:
        """(tokens of the part, shared)."""
        return log_softmax(self.head.logits(self.hidden[part])[:, : self.shared], temperature)


@dataclass(frozen=True)
class Sparse:
    """What was kept of a teacher: its likeliest ids (tokens, k), and their log probabilities with the rest's last.

    The probabilities (tokens, k + 1) were taken at the temperature of the loss. Of the rest only the sum is known, so
    the student's is compared with it as one outcome: a student that is the teacher loses nothing.
    """

    ids: Tensor
    log_p: Tensor
    shared: int


Soft = Dense | Sparse | None


def logit_loss(
    hidden: Tensor, labels: Tensor, head: Head, soft: Soft, settings: Logits, *, total: float, chunk: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of a student's hidden states (tokens, width), with labels (tokens,): a sum over tokens, by `total`.

    Also gives its two parts, hard and soft, without gradient: the sums over tokens by `total` of the cross-entropy and
    of temperature^2 * divergence. Differentiable in hidden, and in the head's weight and bias. `chunk` is how many
    logits are made at once, by the device when None.
    """
    chunk = chunk or CHUNK[hidden.device.type]
    return _Chunked.apply(hidden, head.weight, head.bias, labels, head, soft, settings, total, chunk)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        head: Head,
        soft: Soft,
        settings: Logits,
        total: float,
        chunk: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = _matmul_dtype(hidden)
        head = replace(head, weight=weight.to(dtype), bias=bias)  # as autograd hands them over
        wide = weight.new_zeros((), dtype=torch.promote_types(dtype, torch.float32)).dtype
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        to_hidden = torch.empty_like(hidden) if wants_hidden else None
        to_weight = torch.zeros_like(weight, dtype=wide) if wants_weight else None
        to_bias = torch.zeros_like(bias, dtype=wide) if wants_bias and bias is not None else None
        sums = hidden.new_zeros(2, dtype=wide)
        size = max(chunk // weight.shape[0], 1)
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            state = hidden[part].to(dtype)
            logits = head.logits(state)
            slope = _judge(logits, labels[part], soft, part, settings, sums)
            if not any(ctx.needs_input_grad[:3]):
                continue
            slope = head.into_raw(slope.div_(total), logits).to(dtype)
            if to_hidden is not None:
                to_hidden[part] = slope @ head.weight
            if to_weight is not None:
                _add_product(to_weight, slope, state)
            if to_bias is not None:
                to_bias += slope.sum(0)
        ctx.gradients = [to_hidden, to_weight, to_bias]
        sums /= total
        hard, softly = sums.unbind()
        ctx.mark_non_differentiable(hard, softly)
        weights = (1.0, 0.0) if soft is None else (1 - settings.alpha, settings.alpha)
        return weights[0] * hard + weights[1] * softly, hard, softly

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        whole = float(by) == 1.0
        found = [gradient if gradient is None or whole else gradient * by for gradient in ctx.gradients]
        return (*found, *[None] * 6)


def _judge(logits: Tensor, labels: Tensor, soft: Soft, part: slice, settings: Logits, sums: Tensor) -> Tensor:
    """Adds a chunk's two losses to `sums`; gives the gradient of their weighed sum with respect to its logits."""
    alpha, temperature = (0.0, 1.0) if soft is None else (settings.alpha, settings.temperature)
    log_q = torch.log_softmax(logits, -1)
    sums[0] -= log_q.gather(1, labels[:, None]).sum()
    slope = log_q.exp_()
    slope.scatter_add_(1, labels[:, None], slope.new_full((len(labels), 1), -1.0))
    slope *= 1 - alpha
    if soft is None or alpha == 0:
        return slope
    log_q = log_softmax(logits[:, : soft.shared].clone(), temperature)
    judge = DIVERGENCES[settings.divergence].divergence
    if isinstance(soft, Dense):
        q = log_q.exp()
        value, weighed = judge(soft.log_p(part, temperature), log_q, q, settings.beta)
        found = gradient(weighed, q)
    else:
        value, found = _sparse(soft, part, log_q, settings)
    sums[1] += temperature**2 * value.sum()
    slope[:, : soft.shared] += found.mul_(alpha * temperature)  # temperature^2, and the logits were divided by it
    return slope


def _sparse(soft: Sparse, part: slice, log_q: Tensor, settings: Logits) -> tuple[Tensor, Tensor]:
    """The divergence over the likeliest ids and the rest as one outcome, and its gradient over all ids."""
    ids = soft.ids[part].long()
    coarse = with_rest(log_q, ids)  # (tokens, k + 1)
    value, weighed = DIVERGENCES[settings.divergence].divergence(
        soft.log_p[part].to(log_q.dtype), coarse, coarse.exp(), settings.beta
    )
    all_of_it = weighed.sum(-1, keepdim=True)
    among_rest = (log_q - coarse[:, -1:]).exp_().mul_(weighed[:, -1:])  # the rest's share, as the student spreads it
    q = log_q.exp_()
    top = weighed[:, :-1] - q.gather(1, ids) * all_of_it
    return value, among_rest.sub_(q.mul_(all_of_it)).scatter_(1, ids, top)


def with_rest(log_q: Tensor, ids: Tensor) -> Tensor:
    """Log probabilities (tokens, k + 1) of some ids (tokens, k), and last of all others together."""
    rest = log_q.scatter(1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([log_q.gather(1, ids), rest], -1)


def _matmul_dtype(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _add_product(total: Tensor, slope: Tensor, state: Tensor) -> None:
    if total.dtype == slope.dtype:
        total.addmm_(slope.T, state)
    else:
        total += slope.T @ state
