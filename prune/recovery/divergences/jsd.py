"""beta KL(p, m) + (1 - beta) KL(q, m), m = beta p + (1 - beta) q (https://arxiv.org/abs/2306.13649)."""

from __future__ import annotations

from torch import Tensor

FAR = 60.0  # nats; beyond it exp overflows in float32, and nothing changes any more


def divergence(log_p: Tensor, log_q: Tensor, q: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """nats per token (tokens,), and q times its derivative by q, up to a multiple of q, (tokens, outcomes)."""
    further = (log_q - log_p).clamp_(-FAR, FAR)
    middle = further.expm1().mul_(1 - beta).log1p_()  # log(m / p): exactly 0 where p is q
    weighed = further.sub_(middle).mul_(q).mul_(1 - beta)
    return weighed.sum(-1) - beta * (log_p.exp() * middle).sum(-1), weighed
