"""DeiT: ViT with a second token that was taught by another network (`DeiTForImageClassification`)."""

from prune.model.families.vit import PARTS, SIZES, STORED
from prune.model.family import Family

FAMILY = Family(
    model_type="deit",
    classes=("DeiTForImageClassification", "DeiTForImageClassificationWithTeacher"),
    layers="deit.layers",
    parts=PARTS,
    sizes=SIZES,
    stored=STORED,
)
