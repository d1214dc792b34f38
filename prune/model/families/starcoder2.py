"""StarCoder2: Llama's attention with biases, and an MLP of two linears (`Starcoder2ForCausalLM`)."""

from prune.model.families.llama import ATTENTION, SIZES, SUBLAYERS
from prune.model.family import MEANS, Family, cols, rows

FAMILY = Family(
    model_type="starcoder2",
    classes=("Starcoder2ForCausalLM",),
    layers="model.layers",
    parts={"heads": ATTENTION, "channels": (*rows("mlp.c_fc", "c"), *cols("mlp.c_proj", "c"))},
    sizes=SIZES,
    sublayers=SUBLAYERS,
    refused={"width": MEANS},
    attributes={"self_attn.num_key_value_groups": "groups"},
)
