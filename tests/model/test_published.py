"""Parameter counts of published shapes come out exactly, without a weight in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from prune.model.groups import groups
from prune.model.open import open as open_model
from prune.remove.choose import choose
from prune.remove.cut import cut
from prune.remove.score import score

QWEN = {  # Qwen2.5-7B
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}
LLAMA = {  # Llama-3.1-8B
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
PUBLISHED = [  # family, config, kind of head removed, share removed, width left, parameters
    ("qwen2", QWEN, "query_heads", 3 / 7, 2048, 2_778_732_544),
    ("llama", LLAMA, "query_heads", 0.5, 2048, 2_337_409_024),
    ("phi3", {}, "heads", 0.5, 1536, 1_004_570_112),  # Phi-3-mini is the default config
]


def counted(config: PreTrainedConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())


@pytest.mark.parametrize(("model_type", "changes", "heads", "ratio", "width", "parameters"), PUBLISHED)
def test_published_shapes_have_the_published_counts(
    model_type: str, changes: dict[str, Any], heads: str, ratio: float, width: int, parameters: int
) -> None:
    with torch.device("meta"):
        model = open_model(AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**changes)))
    found = groups(model, [heads, "channels", "width"])
    plan = choose(model, found, score(model, found, criterion="random"), ratio=ratio, multiple_of=8)
    small = cut(model, plan)
    assert small.uniform
    assert small.config.hidden_size == width
    assert small.tensors.parameters == counted(small.config) == parameters
