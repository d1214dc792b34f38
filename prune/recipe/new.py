"""A commented recipe to start from."""

from __future__ import annotations

import re
from pathlib import Path

from prune.errors import PruneError

TEMPLATE = """\
# Run it:        prune apply {path}
# Look first:    prune check {path}
# All options:   docs/recipe.md; names of criteria, families and formats: prune list
model: bundled                      # "bundled", a local folder, or a Hub id; {{id: ..., revision: ...}} pins a revision
output: out/{name}
seed: 0
# device: auto                      # auto, cpu or cuda
# dtype: auto                       # what is computed in: auto, float32, bfloat16 or float16

# The text that criteria look at: python-docs, a local .txt, .jsonl or .parquet, or a Hub dataset id.
calibration: {{data: python-docs, samples: 64, length: 256}}

steps:
  # Ratios are the share that is removed. Several kinds in one step share one pass over the data.
  - remove: {{what: [channels, heads], ratio: 0.25, criterion: wanda}}
  # Whole layers go by count.
  # - remove: {{what: layers, count: 1, criterion: redundancy}}
  # Sizes and perplexity beside those of the model it began with.
  - evaluate: {{perplexity: python-docs, samples: 32, speed: true}}
  # - export: {{format: onnx}}
"""


def new(name: str) -> Path:
    """Writes NAME.yaml and gives its path; PruneError when it is there already, for it is never overwritten."""
    path = Path(name if name.endswith((".yaml", ".yml")) else f"{name}.yaml")
    if not re.fullmatch(r"[\w.-]+", path.stem):
        raise PruneError("a recipe's name has letters, digits, '.', '_' and '-' only", where=name)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(TEMPLATE.format(path=path, name=path.stem))
    except FileExistsError:
        raise PruneError("exists; choose another name", where=str(path)) from None
    except OSError as error:
        raise PruneError(f"cannot be written: {error.strerror}", where=str(path)) from None
    return path
