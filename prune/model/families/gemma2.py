"""Gemma 2: four norms a layer, alternating sliding windows, capped attention logits (`Gemma2ForCausalLM`)."""

from prune.model.families.llama import ATTENTION, ATTRIBUTES, MLP, SIZES
from prune.model.family import Family, Stream, halves

SUBLAYERS = halves(
    "self_attn",
    "mlp",
    norms=(
        ("input_layernorm", "post_attention_layernorm"),
        ("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    ),
)

FAMILY = Family(
    model_type="gemma2",
    classes=("Gemma2ForCausalLM",),
    layers="model.layers",
    parts={"heads": ATTENTION, "channels": MLP},
    sizes=SIZES,
    sublayers=SUBLAYERS,
    stream=Stream((*SUBLAYERS["attention"].others, *SUBLAYERS["mlp"].others), offset=1.0, scaled=True),
    attributes=ATTRIBUTES,
    rescales="post_feedforward_layernorm",
    attention="eager",  # the cap on attention logits exists in no other implementation
)
