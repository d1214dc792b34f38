"""Seed-OSS: Llama's layers with a head size of its own and biases apart for each linear (`SeedOssForCausalLM`)."""

from prune.model.families.llama import ATTENTION, ATTRIBUTES, MLP, SIZES, STREAM, SUBLAYERS
from prune.model.family import Family

FAMILY = Family(
    model_type="seed_oss",
    classes=("SeedOssForCausalLM",),
    layers="model.layers",
    parts={"heads": ATTENTION, "channels": MLP},
    sizes=SIZES,
    sublayers=SUBLAYERS,
    stream=STREAM,
    attributes=ATTRIBUTES,
)
