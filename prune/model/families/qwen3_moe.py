"""Qwen3-MoE: Qwen3's attention and experts, with plain MLPs in the layers the config lists (`Qwen3MoeForCausalLM`)."""

from prune.model.families.llama import ATTENTION, STREAM, SUBLAYERS
from prune.model.families.mixtral import ATTRIBUTES, EXPERTS
from prune.model.families.qwen2_moe import DENSE, MIXTURE, STORED
from prune.model.family import Family

FAMILY = Family(
    model_type="qwen3_moe",
    classes=("Qwen3MoeForCausalLM",),
    layers="model.layers",
    parts={"heads": ATTENTION, "experts": EXPERTS["experts"], "channels": (*DENSE, *EXPERTS["channels"])},
    sizes={**MIXTURE, "experts": "num_local_experts"},
    dense_layers="mlp_only_layers",
    settings={"decoder_sparse_step": 1},
    sublayers=SUBLAYERS,
    stream=STREAM,
    attributes=ATTRIBUTES,
    stored=STORED,
)
