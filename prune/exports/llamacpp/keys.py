"""The keys of a GGUF file that say what the model is."""

from __future__ import annotations

import gguf

from prune.exports.llamacpp.target import Target
from prune.model.model import Model

NAME = "pruned model"  # neutral: llama.cpp reads some names as a hint of how to tokenize


def state(writer: gguf.GGUFWriter, model: Model, target: Target, file_type: gguf.LlamaFileType) -> None:
    """Add a model's sizes and settings."""
    config, head_dim = model.config, model.numbers["head_dim"]
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(NAME)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(len(target.layers))
    writer.add_context_length(target.context)
    writer.add_embedding_length(model.numbers["width"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(target.rope.base)
    if target.rope.linear is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(target.rope.linear)
    _sizes(writer, target)
    if target.architecture.window_period:
        writer.add_sliding_window(config.sliding_window)
    if target.layers[0].experts:
        writer.add_expert_count(target.layers[0].experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    for key, own in target.architecture.numbers.items():
        value = getattr(config, own)
        if value is not None:
            writer.add_float32(f"{target.architecture.name}.{key}", float(value))


def _sizes(writer: gguf.GGUFWriter, target: Target) -> None:
    layers, first = target.layers, target.layers[0]
    if target.architecture.by_layer:
        writer.add_head_count([own.heads for own in layers])
        writer.add_head_count_kv([own.kv_heads for own in layers])
        writer.add_feed_forward_length([own.channels for own in layers])
    else:
        writer.add_head_count(first.heads)
        writer.add_head_count_kv(first.kv_heads)
        writer.add_feed_forward_length(first.channels)
