"""Qwen3: Llama's layers with a norm over each head's query and key (`Qwen3ForCausalLM`)."""

from prune.model.families.llama import ATTENTION, ATTRIBUTES, MLP, SIZES, STREAM, SUBLAYERS
from prune.model.family import Family

FAMILY = Family(
    model_type="qwen3",
    classes=("Qwen3ForCausalLM",),
    layers="model.layers",
    # q_norm and k_norm run over head_dim, which no head removal touches.
    parts={"heads": ATTENTION, "channels": MLP},
    sizes=SIZES,
    sublayers=SUBLAYERS,
    stream=STREAM,
    attributes=ATTRIBUTES,
)
