"""Networks that no family knows (ResNet, ConvNeXt, a module of your own): the names for pruning them, in one place.

from prune import networks
network = networks.trace(module, images)
scores = networks.score(network, pairs, criterion="taylor", loss=torch.nn.functional.cross_entropy)
plan = networks.choose(network, scores, ratio=0.25)
small = networks.cut(network, plan)
networks.save(small, plan, "out/small", example=images)
again = networks.narrow(MyNetwork(), "out/small")
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from prune.remove import choose as choosing
from prune.remove.cut import Plan
from prune.remove.narrow import narrow as narrow
from prune.remove.traced import Traced as Traced
from prune.remove.traced import cut as cut
from prune.remove.traced import trace as trace
from prune.remove.traced_save import save as save
from prune.remove.traced_score import recalibrate as recalibrate
from prune.remove.traced_score import score as score


def choose(network: Traced, scores: Mapping[str, Tensor], **amount: Any) -> Plan:
    """The channels that stay, by group: `ratio` or `count` and the other options of `prune.choose`."""
    return choosing.choose(network, network.groups, scores, **amount)  # type: ignore[arg-type]
