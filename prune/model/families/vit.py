"""ViT: an image in patches through an encoder with norms before each sublayer (`ViTForImageClassification`)."""

from prune.model.family import MEANS, Family, Stored, cols, halves, rows

PARTS = {
    "heads": (
        *rows("attention.q_proj", "q"),
        *rows("attention.k_proj", "kv"),
        *rows("attention.v_proj", "kv"),
        *cols("attention.o_proj", "q"),
    ),
    "channels": (*rows("mlp.fc1", "c"), *cols("mlp.fc2", "c")),
}
SIZES = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "channels": "intermediate_size",
    "head_dim": "head_dim",
}
SUBLAYERS = halves("attention", "mlp", norms=(("layernorm_before",), ("layernorm_after",)))
STORED = Stored(
    renames=(
        ("encoder.layer.", "layers."),
        ("attention.attention.query", "attention.q_proj"),
        ("attention.attention.key", "attention.k_proj"),
        ("attention.attention.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"),
        ("intermediate.dense", "mlp.fc1"),
        ("output.dense", "mlp.fc2"),
    ),
    ignored=(r"\.pooler\.",),
)

FAMILY = Family(
    model_type="vit",
    classes=("ViTForImageClassification",),
    layers="vit.layers",
    parts=PARTS,
    sizes=SIZES,
    sublayers=SUBLAYERS,
    refused={"width": MEANS},
    stored=STORED,
)
