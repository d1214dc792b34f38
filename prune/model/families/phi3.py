"""Phi-3 and Phi-4-mini: Llama's sums with query, key and value, and gate and up, fused (`Phi3ForCausalLM`)."""

from prune.model.families.llama import SIZES, STREAM, SUBLAYERS
from prune.model.family import Family, cols, rows

FAMILY = Family(
    model_type="phi3",
    classes=("Phi3ForCausalLM",),
    layers="model.layers",
    parts={
        "heads": (*rows("self_attn.qkv_proj", "q", "kv", "kv"), *cols("self_attn.o_proj", "q")),
        "channels": (*rows("mlp.gate_up_proj", "c", "c"), *cols("mlp.down_proj", "c")),
    },
    sizes=SIZES,
    sublayers=SUBLAYERS,
    stream=STREAM,
    attributes={"self_attn.num_key_value_groups": "groups", "self_attn.num_key_value_heads": "kv_heads"},
    configured=("self_attn",),  # splits qkv by the number of heads in its config
)
