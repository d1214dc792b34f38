"""How far a student's distribution is from its teacher's, with the gradient in closed form.

forward: KL(p || q), p the teacher's (Hinton et al., https://arxiv.org/abs/1503.02531).
reverse: KL(q || p), which seeks modes (MiniLLM, https://arxiv.org/abs/2306.08543).
jsd: beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q (GKD, https://arxiv.org/abs/2306.13649).
tvd: half the sum of |p - q|, in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Divergence = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
_FAR = 60.0  # nats; beyond it exp overflows in float32, and nothing changes any more


def forward(log_p: Tensor, log_q: Tensor, q: Tensor, beta: float) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    p = log_p.exp()
    return (p * (log_p - log_q)).sum(-1), q - p


def reverse(log_p: Tensor, log_q: Tensor, q: Tensor, beta: float) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    weighed = q * (log_q - log_p)
    return weighed.sum(-1), weighed


def jsd(log_p: Tensor, log_q: Tensor, q: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    further = (log_q - log_p).clamp_(-_FAR, _FAR)
    middle = further.expm1().mul_(1 - beta).log1p_()  # log(m / p): exactly 0 where p is q
    weighed = further.sub_(middle).mul_(q).mul_(1 - beta)
    return weighed.sum(-1) - beta * (log_p.exp() * middle).sum(-1), weighed


def tvd(log_p: Tensor, log_q: Tensor, q: Tensor, beta: float) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    further = q - log_p.exp()
    return further.abs().sum(-1) / 2, further.sign_().mul_(q) / 2


DIVERGENCES: dict[str, Divergence] = {"forward": forward, "reverse": reverse, "jsd": jsd, "tvd": tvd}
"""Name -> function of log p, log q, q (tokens, outcomes) and beta. Gives the divergence in nats (tvd: a share),
(tokens,), and w = q * d/dq, (tokens, outcomes), up to a multiple of q: the gradient with respect to the logits of q is
then w - q * sum(w). Both are exactly 0 where p is q."""


def gradient(weighed: Tensor, q: Tensor) -> Tensor:
    """The gradient with respect to logits (tokens, outcomes) from w = q * d/dq; changes `q` in place."""
    return weighed - q.mul_(weighed.sum(-1, keepdim=True))


def log_softmax(logits: Tensor, temperature: float) -> Tensor:
    """Of logits / temperature; changes `logits` in place."""
    return torch.log_softmax(logits if temperature == 1 else logits.div_(temperature), -1)
