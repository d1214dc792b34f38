"""DeiT: ViT with a second token that was taught by another network (`DeiTForImageClassification`)."""

from prune.model.families.vit import PARTS, SIZES, STORED, SUBLAYERS
from prune.model.family import MEANS, Family

FAMILY = Family(
    model_type="deit",
    classes=("DeiTForImageClassification", "DeiTForImageClassificationWithTeacher"),
    layers="deit.layers",
    parts=PARTS,
    sizes=SIZES,
    sublayers=SUBLAYERS,
    refused={"width": MEANS},
    stored=STORED,
)
