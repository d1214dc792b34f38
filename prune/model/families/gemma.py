"""Gemma: Llama's layers with a head size of its own; norm weights are stored as (1 + w) (`GemmaForCausalLM`)."""

from prune.model.families.llama import ATTENTION, ATTRIBUTES, MLP, SIZES, SUBLAYERS
from prune.model.family import Family, Stream

FAMILY = Family(
    model_type="gemma",
    classes=("GemmaForCausalLM",),
    layers="model.layers",
    parts={"heads": ATTENTION, "channels": MLP},
    sizes=SIZES,
    sublayers=SUBLAYERS,
    stream=Stream(("input_layernorm", "post_attention_layernorm"), offset=1.0, scaled=True),
    attributes=ATTRIBUTES,
)
