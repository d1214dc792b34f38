"""Gemma 3, text only: four norms a layer, norms over each head's query and key (`Gemma3ForCausalLM`)."""

from prune.model.families.llama import ATTENTION, ATTRIBUTES, MLP, SIZES
from prune.model.family import Family

FAMILY = Family(
    model_type="gemma3_text",
    classes=("Gemma3ForCausalLM",),
    layers="model.layers",
    parts={"heads": ATTENTION, "channels": MLP},
    sizes=SIZES,
    attributes=ATTRIBUTES,
)
