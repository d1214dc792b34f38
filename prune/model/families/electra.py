"""ELECTRA: BERT's layers behind embeddings that may be narrower."""

from prune.model.families.bert import ATTRIBUTES, LEFTOVERS, PARTS, SIZES, SUBLAYERS, TASKS
from prune.model.family import MEANS, SQUARE, Family, Stored

FAMILY = Family(
    model_type="electra",
    classes=(*(f"Electra{task}" for task in TASKS), "ElectraForPreTraining"),
    layers="electra.encoder.layer",
    parts=PARTS,
    sizes=SIZES,
    sublayers=SUBLAYERS,
    fixed={"heads": SQUARE},
    refused={"width": MEANS},
    attributes=ATTRIBUTES,
    residual=False,  # norms come after what is added
    stored=Stored(ignored=LEFTOVERS),
)
