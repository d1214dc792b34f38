"""SmolLM3: Llama's layers, some of them without rotary positions (`SmolLM3ForCausalLM`)."""

from prune.model.families.llama import ATTENTION, ATTRIBUTES, MLP, SIZES, STREAM, SUBLAYERS
from prune.model.family import Family

FAMILY = Family(
    model_type="smollm3",
    classes=("SmolLM3ForCausalLM",),
    layers="model.layers",
    parts={"heads": ATTENTION, "channels": MLP},
    sizes=SIZES,
    sublayers=SUBLAYERS,
    stream=STREAM,
    attributes=ATTRIBUTES,
    per_layer_lists=("layer_types", "no_rope_layers"),
)
