"""OPT: biases everywhere, learned positions, an MLP of two linears (`OPTForCausalLM`)."""

from prune.model.family import MEANS, SQUARE, Family, cols, halves, rows

FAMILY = Family(
    model_type="opt",
    classes=("OPTForCausalLM",),
    layers="model.decoder.layers",
    parts={
        "heads": (
            *rows("self_attn.q_proj", "q"),
            *rows("self_attn.k_proj", "kv"),
            *rows("self_attn.v_proj", "kv"),
            *cols("self_attn.out_proj", "q"),
        ),
        "channels": (*rows("fc1", "c"), *cols("fc2", "c")),
    },
    sizes={
        "layers": "num_hidden_layers",
        "width": "hidden_size",
        "heads": "num_attention_heads",
        "channels": "ffn_dim",
    },
    sublayers=halves("self_attn", "fc2", norms=(("self_attn_layer_norm",), ("fc1", "final_layer_norm"))),
    fixed={"heads": SQUARE},
    refused={"width": MEANS},
    attributes={"self_attn.num_heads": "heads"},
    normed_after={"do_layer_norm_before": False},
)
