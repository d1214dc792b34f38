"""Qwen2 and Qwen2.5: Llama's layers with biases on q, k and v (`Qwen2ForCausalLM`)."""

from prune.model.families.llama import ATTENTION, ATTRIBUTES, MLP, SIZES, STREAM, SUBLAYERS
from prune.model.family import Family

FAMILY = Family(
    model_type="qwen2",
    classes=("Qwen2ForCausalLM",),
    layers="model.layers",
    parts={"heads": ATTENTION, "channels": MLP},
    sizes=SIZES,
    sublayers=SUBLAYERS,
    stream=STREAM,
    attributes=ATTRIBUTES,
)
