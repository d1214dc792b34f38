"""BERT: an encoder with norms after each sublayer, and its heads for classification and masked words."""

from prune.model.family import MEANS, SQUARE, Family, Stored, Sublayer, cols, rows

PARTS = {
    "heads": (
        *rows("attention.self.query", "q"),
        *rows("attention.self.key", "kv"),
        *rows("attention.self.value", "kv"),
        *cols("attention.output.dense", "q"),
    ),
    "channels": (*rows("intermediate.dense", "c"), *cols("output.dense", "c")),
}
SIZES = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "channels": "intermediate_size",
}
TASKS = (
    "ForMaskedLM",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
)
ATTRIBUTES = {"attention.self.num_attention_heads": "heads", "attention.self.all_head_size": "q"}
SUBLAYERS = {  # norms come after the sum, inside of what adds: left out, both go
    "attention": Sublayer("attention", returns=2, passes=0),
    "mlp": Sublayer("output", ("intermediate",), passes=1),
}
LEFTOVERS = (r"position_ids$", r"\.pooler\.", r"^cls\.seq_relationship\.")  # of pre-training, read by no task's class

FAMILY = Family(
    model_type="bert",
    classes=tuple(f"Bert{task}" for task in TASKS),
    layers="bert.encoder.layer",
    parts=PARTS,
    sizes=SIZES,
    sublayers=SUBLAYERS,
    fixed={"heads": SQUARE},
    refused={"width": MEANS},
    attributes=ATTRIBUTES,
    residual=False,  # norms come after what is added
    stored=Stored(ignored=LEFTOVERS),
)
