"""BLOOM: ALiBi positions, fused attention, an MLP always four times as wide as the model (`BloomForCausalLM`)."""

from prune.model.family import MEANS, Family, Sublayer, cols, rows

SLOPES = "a head's position slope follows from its number, for all layers at once"

FAMILY = Family(
    model_type="bloom",
    classes=("BloomForCausalLM",),
    layers="transformer.h",
    parts={"channels": (*rows("mlp.dense_h_to_4h", "c"), *cols("mlp.dense_4h_to_h", "c"))},
    sizes={"layers": "n_layer", "width": "hidden_size", "heads": "n_head", "channels": "intermediate_size"},
    sublayers={  # both add to the stream themselves
        "attention": Sublayer("self_attention", ("input_layernorm",), returns=2, passes=1),
        "mlp": Sublayer("mlp", ("post_attention_layernorm",), passes=1),
    },
    fixed={"channels": "the MLP is four times as wide as the model, whatever the config says"},
    refused={"heads": SLOPES, "query_heads": SLOPES, "width": MEANS},
    normed_after={"apply_residual_connection_post_layernorm": True},
    adds=("self_attention.dense.weight",),
    returns=2,
    attention="eager",
)
