"""What TRL says of a case, without TRL."""

from __future__ import annotations

import pytest

from prune.recovery.head import Head
from prune.recovery.logits import Dense, Logits, logit_loss
from tests.recovery.golden import IDS, JSD, TOKENS, case


def ours(beta: float, temperature: float) -> float:
    """The divergence by TRL's beta: 0 is the forward one, 1 the reverse one, between them the teacher's share."""
    kind = {0.0: "forward", 1.0: "reverse"}.get(beta, "jsd")
    mine, theirs, own, other, labels = case()
    settings = Logits(kind, temperature=temperature, alpha=1.0, beta=beta)  # type: ignore[arg-type]
    soft = Dense(theirs, Head(other, None, 1.0, None), IDS)
    _, _, found = logit_loss(mine, labels, Head(own, None, 1.0, None), soft, settings, total=TOKENS, chunk=5 * IDS)
    return found.item() / temperature**2


@pytest.mark.parametrize(("beta", "temperature"), sorted(JSD))
def test_the_divergences_are_those_of_trl(beta: float, temperature: float) -> None:
    assert ours(beta, temperature) == pytest.approx(JSD[beta, temperature], rel=1e-4)
