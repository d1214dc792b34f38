"""Gemma 2: four norms a layer, alternating sliding windows, capped attention logits (`Gemma2ForCausalLM`)."""

from prune.model.families.llama import ATTENTION, ATTRIBUTES, MLP, SIZES
from prune.model.family import Family

FAMILY = Family(
    model_type="gemma2",
    classes=("Gemma2ForCausalLM",),
    layers="model.layers",
    parts={"heads": ATTENTION, "channels": MLP},
    sizes=SIZES,
    attributes=ATTRIBUTES,
    attention="eager",  # the cap on attention logits exists in no other implementation
)
