"""Qwen2-MoE and Qwen1.5-MoE: Qwen2's attention, experts beside one that every token goes to (`Qwen2MoeForCausalLM`)."""

from dataclasses import replace

from prune.model.families.llama import ATTENTION, SIZES, STREAM, SUBLAYERS
from prune.model.families.mixtral import ATTRIBUTES, EXPERTS
from prune.model.family import Family, Stored, cols, rows

DENSE = (  # of layers that have a plain MLP; the shared expert of the others stays whole
    *rows("mlp.gate_proj", "c", optional=True),
    *rows("mlp.up_proj", "c", optional=True),
    *cols("mlp.down_proj", "c", optional=True),
)
SHARED = (
    ("mlp.shared_expert.gate_proj.weight", 1),
    ("mlp.shared_expert.up_proj.weight", 1),
    ("mlp.shared_expert.down_proj.weight", 0),
    ("mlp.shared_expert_gate.weight", 1),
)
STORED = Stored(
    merged={
        "mlp.experts.gate_up_proj": ("mlp.experts.{}.gate_proj.weight", "mlp.experts.{}.up_proj.weight"),
        "mlp.experts.down_proj": ("mlp.experts.{}.down_proj.weight",),
    },
)
MIXTURE = {
    **SIZES,
    "expert_channels": "moe_intermediate_size",
    "experts": "num_experts",
    "routed": "num_experts_per_tok",
}

FAMILY = Family(
    model_type="qwen2_moe",
    classes=("Qwen2MoeForCausalLM",),
    layers="model.layers",
    parts={"heads": ATTENTION, "experts": EXPERTS["experts"], "channels": (*DENSE, *EXPERTS["channels"])},
    sizes=MIXTURE,
    dense_layers="mlp_only_layers",
    settings={"decoder_sparse_step": 1},  # the list alone says which layers are dense, whatever their numbers
    sublayers=SUBLAYERS,
    stream=replace(STREAM, others=SHARED),
    attributes=ATTRIBUTES,
    adds=("mlp.shared_expert.down_proj.weight",),
    stored=STORED,
)
