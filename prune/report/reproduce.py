"""How the result is loaded and made again, in words that the card and the page share."""

from __future__ import annotations

import json
from typing import Any

import yaml


def recipe_yaml(manifest: dict[str, Any]) -> str:
    """The recipe in one order, whatever that of the file was: model first, steps last."""
    tidy = json.loads(json.dumps(manifest["recipe"], sort_keys=True))
    order = sorted(tidy, key=lambda name: (name == "steps", name != "model"))
    return str(yaml.safe_dump({name: tidy[name] for name in order}, sort_keys=False, allow_unicode=True))


def loading(model_type: str) -> tuple[str, str]:
    """One line that says what loads a checkpoint of this type, and the Python that does."""
    if model_type.startswith("prune_"):
        return (
            "Its layers differ in shape, so it has a model type of its own that prune teaches transformers; after "
            "import prune, the Auto classes load it too.",
            'import prune\n\nmodel = prune.load("path/to/this/folder")\n',
        )
    return (
        "A stock checkpoint, which needs no code of ours.",
        "from transformers import AutoModelForCausalLM\n\n"
        'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")\n',
    )
