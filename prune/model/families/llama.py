"""Llama and what shares its layers: RMSNorm, rotary attention with grouped heads, gated MLP (`LlamaForCausalLM`)."""

from prune.model.family import Alias, Family, Stream, cols, halves, rows

ATTENTION = (
    *rows("self_attn.q_proj", "q"),
    *rows("self_attn.k_proj", "kv"),
    *rows("self_attn.v_proj", "kv"),
    *cols("self_attn.o_proj", "q"),
)
MLP = (*rows("mlp.gate_proj", "c"), *rows("mlp.up_proj", "c"), *cols("mlp.down_proj", "c"))
SIZES = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "channels": "intermediate_size",
    "head_dim": "head_dim",
}
SUBLAYERS = halves("self_attn", "mlp", norms=(("input_layernorm",), ("post_attention_layernorm",)))
STREAM = Stream(("input_layernorm", "post_attention_layernorm"))
ATTRIBUTES = {"self_attn.num_key_value_groups": "groups", "mlp.intermediate_size": "channels"}

FAMILY = Family(
    model_type="llama",
    classes=("LlamaForCausalLM",),
    layers="model.layers",
    parts={"heads": ATTENTION, "channels": MLP},
    sizes=SIZES,
    sublayers=SUBLAYERS,
    stream=STREAM,
    attributes=ATTRIBUTES,
    # LlamaConfig refuses head counts that do not divide the hidden size; Mistral without a window is the same sum.
    alias=Alias(
        "mistral",
        settings={"sliding_window": None},
        drop=("attention_bias", "mlp_bias", "pretraining_tp"),
        requires={"attention_bias": False, "mlp_bias": False},
    ),
)
