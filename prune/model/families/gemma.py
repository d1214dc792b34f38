"""Gemma: Llama's layers with a head size of its own; norm weights are stored as (1 + w) (`GemmaForCausalLM`)."""

from prune.model.families.llama import ATTENTION, ATTRIBUTES, MLP, SIZES
from prune.model.family import Family

FAMILY = Family(
    model_type="gemma",
    classes=("GemmaForCausalLM",),
    layers="model.layers",
    parts={"heads": ATTENTION, "channels": MLP},
    sizes=SIZES,
    attributes=ATTRIBUTES,
)
