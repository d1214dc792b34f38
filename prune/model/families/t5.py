"""T5: an encoder and a decoder that share one embedding (`T5ForConditionalGeneration`)."""

from prune.model.family import Family, Part, cols, rows


def _mlp(module: str) -> tuple[Part, ...]:
    """The MLP of a block, gated (wi_0, wi_1) or not (wi): an encoder's second sublayer, a decoder's third."""
    inputs = (part for linear in ("wi", "wi_0", "wi_1") for part in rows(f"{module}.{linear}", "c", optional=True))
    return (*inputs, *cols(f"{module}.wo", "c", optional=True))


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
    refused={"heads": "the first layer's position bias serves the heads of all layers"},
    leading=("layer.0.SelfAttention.relative_attention_bias.weight",),
    carries={"position_bias": 1, "encoder_decoder_position_bias": 2},
    returns=3,
    adds=("layer.0.SelfAttention.o.weight", "layer.1.EncDecAttention.o.weight"),
    differing=False,  # transformers counts layers of the encoder and of the decoder from the same zero
)
