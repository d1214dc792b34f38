"""Mistral: Llama's layers without biases, with an optional sliding window (`MistralForCausalLM`)."""

from prune.model.families.llama import ATTENTION, ATTRIBUTES, MLP, SIZES, STREAM, SUBLAYERS
from prune.model.family import Family

FAMILY = Family(
    model_type="mistral",
    classes=("MistralForCausalLM",),
    layers="model.layers",
    parts={"heads": ATTENTION, "channels": MLP},
    sizes=SIZES,
    sublayers=SUBLAYERS,
    stream=STREAM,
    attributes=ATTRIBUTES,
)
