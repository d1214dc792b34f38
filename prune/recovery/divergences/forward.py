"""KL(p, q), p the teacher's (https://arxiv.org/abs/1503.02531): the student covers all that the teacher says."""

from __future__ import annotations

from torch import Tensor


def divergence(log_p: Tensor, log_q: Tensor, q: Tensor, beta: float) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    """nats per token (tokens,), and q times its derivative by q, up to a multiple of q, (tokens, outcomes)."""
    p = log_p.exp()
    return (p * (log_p - log_q)).sum(-1), q - p
