"""DistilBERT: BERT's sums, half as many layers, names of its own."""

from prune.model.families.bert import LEFTOVERS, TASKS
from prune.model.family import MEANS, SQUARE, Family, Stored, cols, halves, rows

FAMILY = Family(
    model_type="distilbert",
    classes=tuple(f"DistilBert{task}" for task in TASKS),
    layers="distilbert.transformer.layer",
    parts={
        "heads": (
            *rows("attention.q_lin", "q"),
            *rows("attention.k_lin", "kv"),
            *rows("attention.v_lin", "kv"),
            *cols("attention.out_lin", "q"),
        ),
        "channels": (*rows("ffn.lin1", "c"), *cols("ffn.lin2", "c")),
    },
    sizes={"layers": "n_layers", "width": "dim", "heads": "n_heads", "channels": "hidden_dim"},
    sublayers=halves("attention", "ffn", norms=(("sa_layer_norm",), ("output_layer_norm",))),
    fixed={"heads": SQUARE},
    refused={"width": MEANS},
    attributes={"attention.n_heads": "heads"},
    residual=False,  # norms come after what is added
    stored=Stored(ignored=LEFTOVERS),
)
