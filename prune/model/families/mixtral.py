"""Mixtral: Mistral's attention and a mixture of experts in every layer (`MixtralForCausalLM`)."""

from prune.model.families.llama import ATTENTION, SIZES, STREAM, SUBLAYERS
from prune.model.family import Family, Stored, experts

EXPERTS = experts("mlp.experts", router="mlp.gate")
ATTRIBUTES = {
    "self_attn.num_key_value_groups": "groups",
    "mlp.gate.num_experts": "experts",
    "mlp.experts.num_experts": "experts",
    "mlp.experts.intermediate_dim": "expert_channels",
}

FAMILY = Family(
    model_type="mixtral",
    classes=("MixtralForCausalLM",),
    layers="model.layers",
    parts={"heads": ATTENTION, **EXPERTS},
    sizes={
        **{number: key for number, key in SIZES.items() if number != "channels"},
        "expert_channels": "intermediate_size",
        "experts": "num_local_experts",
        "routed": "num_experts_per_tok",
    },
    sublayers=SUBLAYERS,
    stream=STREAM,
    attributes=ATTRIBUTES,
    stored=Stored(
        renames=(("block_sparse_moe.", "mlp."),),
        merged={
            "mlp.experts.gate_up_proj": ("mlp.experts.{}.w1.weight", "mlp.experts.{}.w3.weight"),
            "mlp.experts.down_proj": ("mlp.experts.{}.w2.weight",),
        },
    ),
)
