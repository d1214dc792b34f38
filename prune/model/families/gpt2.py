"""GPT-2: fused query, key and value, and weights stored transposed (`GPT2LMHeadModel`)."""

from prune.model.family import MEANS, SQUARE, Family, cols, halves, rows

FAMILY = Family(
    model_type="gpt2",
    classes=("GPT2LMHeadModel",),
    layers="transformer.h",
    parts={
        "heads": (
            *rows("attn.c_attn", "q", "kv", "kv", transposed=True),
            *cols("attn.c_proj", "q", transposed=True),
        ),
        "channels": (*rows("mlp.c_fc", "c", transposed=True), *cols("mlp.c_proj", "c", transposed=True)),
    },
    sizes={"layers": "n_layer", "width": "n_embd", "heads": "n_head", "channels": "n_inner"},
    sublayers=halves("attn", "mlp", norms=(("ln_1",), ("ln_2",))),
    fixed={"heads": SQUARE},
    refused={"width": MEANS},
    numbered=("scale_attn_by_inverse_layer_idx",),
    attributes={"attn.split_size": "q", "attn.num_heads": "heads"},
)
