"""T5: an encoder and a decoder that share one embedding (`T5ForConditionalGeneration`)."""

from prune.model.family import Family, Part, cols, rows


def _mlp(module: str) -> tuple[Part, ...]:
    """The MLP of a block, gated (wi_0, wi_1) or not (wi): an encoder's second sublayer, a decoder's third."""
    inputs = (part for linear in ("wi", "wi_0", "wi_1") for part in rows(f"{module}.{linear}", "c", optional=True))
    return (*inputs, *cols(f"{module}.wo", "c", optional=True))


BIAS = "the first layer's position bias serves the heads of all layers"
ALIKE = "layers would differ, and transformers counts those of encoder and decoder from the same zero"

FAMILY = Family(
    model_type="t5",
    classes=("T5ForConditionalGeneration",),
    layers="decoder.block",
    encoder="encoder.block",
    parts={"channels": (*_mlp("layer.1.DenseReluDense"), *_mlp("layer.2.DenseReluDense"))},
    sizes={
        "layers": "num_decoder_layers",
        "encoder_layers": "num_layers",
        "width": "d_model",
        "heads": "num_heads",
        "head_dim": "d_kv",
        "channels": "d_ff",
    },
    refused={
        "heads": BIAS,
        "query_heads": BIAS,
        "attention": ALIKE,
        "mlp": ALIKE,
        "width": "the hidden states of encoder and decoder would have to lose the same positions, and a cut knows one",
    },
    leading=("layer.0.SelfAttention.relative_attention_bias.weight",),
    carries={"position_bias": 1, "encoder_decoder_position_bias": 2},
    returns=3,
    adds=("layer.0.SelfAttention.o.weight", "layer.1.EncDecAttention.o.weight"),
    differing=False,  # see ALIKE
)
