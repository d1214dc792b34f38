"""OLMo 2: norms after attention and MLP, and norms over all heads' queries and keys at once (`Olmo2ForCausalLM`)."""

from prune.model.families.llama import ATTENTION, ATTRIBUTES, MLP, SIZES
from prune.model.family import Family, Stream, halves, norm

NORMS = (
    *norm("self_attn.q_norm", "q", "self_attn.q_proj.weight"),
    *norm("self_attn.k_norm", "kv", "self_attn.k_proj.weight"),
)

FAMILY = Family(
    model_type="olmo2",
    classes=("Olmo2ForCausalLM",),
    layers="model.layers",
    parts={"heads": (*ATTENTION, *NORMS), "channels": MLP},
    sizes=SIZES,
    sublayers=halves("self_attn", "mlp", norms=(("post_attention_layernorm",), ("post_feedforward_layernorm",))),
    stream=Stream(("post_attention_layernorm", "post_feedforward_layernorm")),
    attributes=ATTRIBUTES,
    rescales="post_feedforward_layernorm",
)
