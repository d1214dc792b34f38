"""GPT-NeoX and Pythia: query, key and value interleaved head by head (`GPTNeoXForCausalLM`)."""

from prune.model.family import MEANS, SQUARE, Family, cols, halves, rows

FAMILY = Family(
    model_type="gpt_neox",
    classes=("GPTNeoXForCausalLM",),
    layers="gpt_neox.layers",
    parts={
        "heads": (*rows("attention.query_key_value", "qkv"), *cols("attention.dense", "q")),
        "channels": (*rows("mlp.dense_h_to_4h", "c"), *cols("mlp.dense_4h_to_h", "c")),
    },
    sizes={
        "layers": "num_hidden_layers",
        "width": "hidden_size",
        "heads": "num_attention_heads",
        "channels": "intermediate_size",
    },
    sublayers=halves("attention", "mlp", norms=(("input_layernorm",), ("post_attention_layernorm",))),
    fixed={"heads": SQUARE},
    refused={"width": MEANS},
)
