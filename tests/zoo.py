"""A tiny random model of every family, and what to feed it."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from prune.model import family as families
from tests.tiny import COMMON, padded_batch, token_ids

PLAIN = {key: value for key, value in COMMON.items() if key not in ("num_key_value_heads", "head_dim")}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
BERT = {**PLAIN, "num_attention_heads": 4, "max_position_embeddings": 32, "num_labels": 3}
VIT = {**BERT, "image_size": 8, "patch_size": 2, "num_channels": 3}
SLIDING = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 6}
GPT2 = {
    "vocab_size": 96,
    "n_positions": 64,
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

CHANGES: dict[str, dict[str, Any]] = {
    "bert": BERT,
    "bloom": {"vocab_size": 96, "hidden_size": 48, "n_layer": 3, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2},
    "deit": VIT,
    "distilbert": {
        "vocab_size": 96,
        "dim": 48,
        "hidden_dim": 40,
        "n_layers": 3,
        "n_heads": 4,
        "max_position_embeddings": 32,
    },
    "electra": {**BERT, "embedding_size": 32},
    "gemma2": {**COMMON, **SLIDING, "query_pre_attn_scalar": 6, "attn_logit_softcapping": 5.0},
    "gemma3_text": {**COMMON, **SLIDING, "query_pre_attn_scalar": 6},
    "gpt2": GPT2,
    "gpt_neox": {**PLAIN, "num_attention_heads": 4},
    "granite": {**COMMON, "attention_multiplier": 0.3, "residual_multiplier": 0.5, "embedding_multiplier": 2.0},
    "mixtral": {**COMMON, **EXPERTS, "intermediate_size": 32},
    "olmoe": {**COMMON, "intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2},
    "opt": {**PLAIN, "num_attention_heads": 4, "ffn_dim": 40, "word_embed_proj_dim": 32},
    "phi3": {**COMMON, "original_max_position_embeddings": 64},
    "qwen2_moe": {
        **COMMON,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 16,
        "mlp_only_layers": [1],
    },
    "qwen3_moe": {**COMMON, **EXPERTS, "moe_intermediate_size": 32, "mlp_only_layers": [1]},
    "roberta": {**BERT, "pad_token_id": 0},
    "smollm3": {**COMMON, "no_rope_layers": [1, 0, 1], "num_key_value_heads": 4},
    "t5": {
        "vocab_size": 96,
        "d_model": 48,
        "d_kv": 12,
        "d_ff": 40,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "decoder_start_token_id": 0,
    },
    "vit": VIT,
}
CLASSES = {
    "bert": "BertForSequenceClassification",
    "distilbert": "DistilBertForTokenClassification",
    "electra": "ElectraForSequenceClassification",
    "roberta": "RobertaForMaskedLM",
}
FAMILIES = families.names()
GENERATES = [name for name in FAMILIES if name not in (*CLASSES, "vit", "deit")]


@cache
def module(model_type: str, architecture: str = "", seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A model with weights large enough that every unit matters. Shared between tests: not to be changed."""
    config = CONFIG_MAPPING[model_type](**{**CHANGES.get(model_type, COMMON), **changes})
    name = architecture or CLASSES.get(model_type, families.of(model_type).classes[0])
    torch.manual_seed(seed)
    made: PreTrainedModel = getattr(transformers, name)(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in made.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * (0.3 if parameter.ndim > 1 else 0.1)
            is_norm = parameter.ndim == 1 and parameter_name.endswith("weight") and "gemma" not in model_type
            parameter.copy_(noise + 1 if is_norm else noise)
    return made


def batch(model_type: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Two rows of inputs, one of them padded where the model reads text."""
    if model_type in ("vit", "deit"):
        return {"pixel_values": torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))}
    inputs = padded_batch(seed)
    if model_type in CLASSES:  # encoders are padded on the right
        inputs = {key: value.flip(1) for key, value in inputs.items()}
    if model_type == "t5":
        inputs["decoder_input_ids"] = token_ids(2, 7, seed=seed + 1)
    return inputs


def logits(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """What a model says, at every position."""
    with torch.no_grad():
        found: torch.Tensor = model(**inputs).logits
    return found
