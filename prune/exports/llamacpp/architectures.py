"""llama.cpp's architectures as data: what each can state, and which of them compute the same as a model type.

Facts from llama.cpp's src/llama-model.cpp and src/models/, and from files of ours run there (tests/peers).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
LINEARS = (*QKV, "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


@dataclass(frozen=True)
class Architecture:
    """What a reader of GGUF files computes under one name."""

    name: str
    permuted: bool = False  # rotary positions turn neighbouring rows, where transformers turns two halves
    by_layer: bool = False  # reads every layer's sizes; the others read the first layer's for all
    square: bool = False  # attention must be as wide as the model
    experts: bool = False
    tied: bool = False  # has no place for a head apart from the embedding
    biases: tuple[str, ...] = ()  # linears whose biases it has a place for
    factors: bool = False  # takes a factor for each rotary frequency
    activation: str = "silu"
    shifted: bool = False  # transformers stores w for norms that multiply by 1 + w
    window_period: int = 0  # every layer but each n-th looks through a window
    rope_period: int = 0  # every layer but each n-th has rotary positions
    odd_scale: int = 0  # with this many layers scores are divided by the root of width / heads, not of head_dim
    numbers: Mapping[str, str] = field(default_factory=dict)  # further keys -> the config's own


GELU = "gelu_pytorch_tanh"
CAPS = {"attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping"}
MULTIPLIERS = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}

LLAMA = Architecture("llama", permuted=True, experts=True, biases=LINEARS, factors=True)
DECI = Architecture("deci", permuted=True, by_layer=True, biases=LINEARS, factors=True)
QWEN2 = Architecture("qwen2", square=True, biases=QKV)
QWEN3 = Architecture("qwen3")
GEMMA = Architecture("gemma", tied=True, activation=GELU, shifted=True)
GEMMA2 = Architecture("gemma2", tied=True, activation=GELU, shifted=True, window_period=2, odd_scale=46, numbers=CAPS)
GEMMA3 = Architecture("gemma3", tied=True, activation=GELU, shifted=True, window_period=6, odd_scale=62)
GRANITE = Architecture("granite", permuted=True, biases=LINEARS, factors=True, numbers=MULTIPLIERS)
SMOLLM3 = Architecture("smollm3", permuted=True, rope_period=4)

# Model type -> the architectures that compute the same, in order of preference.
CARRIERS: Mapping[str, tuple[Architecture, ...]] = {
    "gemma": (GEMMA,),
    "gemma2": (GEMMA2,),
    "gemma3_text": (GEMMA3,),
    "granite": (GRANITE,),
    "llama": (LLAMA, DECI),
    "mistral": (LLAMA, DECI),
    "mixtral": (LLAMA,),
    "phi3": (LLAMA, DECI),
    "qwen2": (QWEN2, LLAMA, DECI),
    "qwen3": (QWEN3,),
    "seed_oss": (LLAMA, DECI),
    "smollm3": (SMOLLM3,),
}
