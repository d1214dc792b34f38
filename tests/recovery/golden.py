"""The case that TRL's losses were asked about, and what TRL 1.16.0 said (tests/peers/test_trl.py asks it again)."""

from __future__ import annotations

import torch
from torch import Tensor

TOKENS, WIDTH, IDS = 24, 8, 50
# (beta of the teacher in TRL's terms, temperature) -> the mean divergence per token
JSD: dict[tuple[float, float], float] = {
    (0.0, 1.0): 3.739764,
    (0.0, 2.0): 1.3704404,
    (0.1, 1.0): 0.169651,
    (0.1, 2.0): 0.0974707,
    (0.5, 1.0): 0.3400664,
    (0.5, 2.0): 0.2096471,
    (1.0, 1.0): 1.4237342,
    (1.0, 2.0): 0.8079875,
}


def case() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Hidden states (tokens, width) and heads (ids, width) of student and teacher, and labels; nothing by chance."""

    def wave(*shape: int, pace: float) -> Tensor:
        return torch.sin(torch.arange(float(torch.Size(shape).numel())) * pace).reshape(shape)

    labels = torch.arange(TOKENS) * 7 % IDS
    return (
        wave(TOKENS, WIDTH, pace=0.7),
        wave(TOKENS, WIDTH, pace=1.3),
        2 * wave(IDS, WIDTH, pace=0.31),
        2 * wave(IDS, WIDTH, pace=0.47),
        labels,
    )
