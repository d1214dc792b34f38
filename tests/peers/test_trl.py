"""TRL's generalised Jensen-Shannon divergences beside ours, and beside the golden values that ordinary tests use."""

from __future__ import annotations

import pytest
import torch
from trl.experimental.gkd import GKDTrainer
from trl.trainer.distillation_trainer import _chunked_divergence_loss

from tests.recovery.golden import JSD, TOKENS, case
from tests.recovery.test_trl_golden import ours


@pytest.mark.parametrize(("beta", "temperature"), sorted(JSD))
def test_both_of_trls_losses_are_ours(beta: float, temperature: float) -> None:
    mine, theirs, own, other, labels = case()
    whole = GKDTrainer.generalized_jsd_loss(
        (mine @ own.T)[None], (theirs @ other.T)[None], labels[None], beta=beta, temperature=temperature
    ).item()
    assert whole == pytest.approx(JSD[beta, temperature], rel=1e-4)
    assert whole == pytest.approx(ours(beta, temperature), rel=1e-4)
    ones = torch.ones(1, TOKENS)
    chunked = _chunked_divergence_loss(mine[None], theirs[None], own, other, ones, beta, temperature=temperature)[0]
    assert chunked.item() == pytest.approx(ours(beta, temperature), rel=1e-4)
