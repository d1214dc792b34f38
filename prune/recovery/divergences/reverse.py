"""KL(q, p), q the student's (https://arxiv.org/abs/2306.08543): it keeps to what the teacher finds likely."""

from __future__ import annotations

from torch import Tensor


def divergence(log_p: Tensor, log_q: Tensor, q: Tensor, beta: float) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    """nats per token (tokens,), and q times its derivative by q, up to a multiple of q, (tokens, outcomes)."""
    weighed = q * (log_q - log_p)
    return weighed.sum(-1), weighed
