"""Total variation: half the sum of |p - q|, a share and not nats."""

from __future__ import annotations

from torch import Tensor


def divergence(log_p: Tensor, log_q: Tensor, q: Tensor, beta: float) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    """the share per token (tokens,), and q times its derivative by q, up to a multiple of q, (tokens, outcomes)."""
    further = q - log_p.exp()
    return further.abs().sum(-1) / 2, further.sign_().mul_(q) / 2
