"""OLMoE: experts in every layer, and norms over all heads' queries and keys at once (`OlmoeForCausalLM`)."""

from prune.model.families.llama import ATTENTION, SUBLAYERS
from prune.model.families.mixtral import ATTRIBUTES, EXPERTS
from prune.model.families.mixtral import FAMILY as MIXTRAL
from prune.model.families.olmo2 import NORMS
from prune.model.families.qwen2_moe import STORED
from prune.model.family import Family

FAMILY = Family(
    model_type="olmoe",
    classes=("OlmoeForCausalLM",),
    layers="model.layers",
    parts={"heads": (*ATTENTION, *NORMS), **EXPERTS},
    sizes={**MIXTRAL.sizes, "experts": "num_experts"},
    fixed={"heads": "the norm over the queries is as wide as the model, whatever the number of heads"},
    sublayers=SUBLAYERS,
    refused={"width": "the norms over queries and keys are as wide as the model, whatever the number of heads"},
    attributes=ATTRIBUTES,
    stored=STORED,
)
