"""RoBERTa: BERT's layers, positions counted past the padding."""

from prune.model.families.bert import ATTRIBUTES, LEFTOVERS, PARTS, SIZES, SUBLAYERS, TASKS
from prune.model.family import MEANS, SQUARE, Family, Stored

FAMILY = Family(
    model_type="roberta",
    classes=tuple(f"Roberta{task}" for task in TASKS),
    layers="roberta.encoder.layer",
    parts=PARTS,
    sizes=SIZES,
    sublayers=SUBLAYERS,
    fixed={"heads": SQUARE},
    refused={"width": MEANS},
    attributes=ATTRIBUTES,
    residual=False,  # norms come after what is added
    stored=Stored(ignored=LEFTOVERS),
)
