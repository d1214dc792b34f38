"""Tiny random models of every family, made from configs."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from prune.model import family as families

COMMON = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 6,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def tiny_model(
    model_type: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any
) -> PreTrainedModel:
    """A model with weights large enough that every unit matters."""
    config = CONFIG_MAPPING[model_type](**{**COMMON, **changes})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=families.of(model_type).attention).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if parameter.ndim > 1 else 0.1
            noise = torch.randn(parameter.shape, generator=generator) * scale
            value = noise + 1 if "norm" in name and name.endswith("weight") else noise
            parameter.data = value.to(dtype)  # not model.to(dtype), which would round the rotary tables too
    model.config.dtype = dtype
    return model


def token_ids(*shape: int, seed: int = 0, vocabulary: int = 96) -> torch.Tensor:
    """Token ids without the special ones."""
    return torch.randint(3, vocabulary, shape, generator=torch.Generator().manual_seed(seed))


def padded_batch(seed: int = 0) -> dict[str, torch.Tensor]:
    """Two windows of 12 tokens, the second padded on the left by 5."""
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, :5] = 0
    return {"input_ids": token_ids(2, 12, seed=seed), "attention_mask": mask}
