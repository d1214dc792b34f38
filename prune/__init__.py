"""prune: structured pruning for Hugging Face models.

    import prune
    model = prune.open("bundled")
    groups = prune.groups(model, ["channels", "heads"])
    data = prune.batches("python-docs", model.tokenizer(), samples=64, length=256)
    scores = prune.score(model, groups, data, criterion="wanda")
    plan = prune.choose(model, groups, scores, ratio=0.25)
    small = prune.cut(model, plan)
    prune.save(small, "out/small")

Importing it also registers the model types whose layers differ with transformers' Auto classes.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from prune.data import batches as batches
    from prune.data import windows as windows
    from prune.errors import PruneError as PruneError
    from prune.evaluation.evaluate import evaluate as evaluate
    from prune.evaluation.perplexity import perplexity as perplexity
    from prune.exports.export import export as export
    from prune.exports.hub import publish as publish
    from prune.files import verify as verify
    from prune.inspection import inspect as inspect
    from prune.labels import examples as examples
    from prune.merging.layers import upscale as upscale
    from prune.merging.merge import merge as merge
    from prune.model.groups import Group as Group
    from prune.model.groups import Slice as Slice
    from prune.model.groups import groups as groups
    from prune.model.model import Model as Model
    from prune.model.open import open as open
    from prune.model.save import load as load
    from prune.model.save import save as save
    from prune.model.walk import walk as walk
    from prune.recipe import apply as apply
    from prune.recipe import check as check
    from prune.recovery.distill import distill as distill
    from prune.recovery.train import train as train
    from prune.remove.absorb import absorb as absorb
    from prune.remove.choose import choose as choose
    from prune.remove.cut import cut as cut
    from prune.remove.narrow import narrow as narrow
    from prune.remove.prove import prove as prove
    from prune.remove.score import score as score
    from prune.remove.sensitivity import sensitivity as sensitivity
    from prune.remove.traced import trace as trace
    from prune.synthesis.synthesize import synthesize as synthesize

_HOMES = {
    "PruneError": "prune.errors",
    "Group": "prune.model.groups",
    "Model": "prune.model.model",
    "Slice": "prune.model.groups",
    "absorb": "prune.remove.absorb",
    "apply": "prune.recipe",
    "batches": "prune.data",
    "check": "prune.recipe",
    "choose": "prune.remove.choose",
    "cut": "prune.remove.cut",
    "distill": "prune.recovery.distill",
    "evaluate": "prune.evaluation.evaluate",
    "examples": "prune.labels",
    "export": "prune.exports.export",
    "groups": "prune.model.groups",
    "inspect": "prune.inspection",
    "load": "prune.model.save",
    "merge": "prune.merging.merge",
    "narrow": "prune.remove.narrow",
    "open": "prune.model.open",
    "perplexity": "prune.evaluation.perplexity",
    "prove": "prune.remove.prove",
    "publish": "prune.exports.hub",
    "save": "prune.model.save",
    "score": "prune.remove.score",
    "sensitivity": "prune.remove.sensitivity",
    "synthesize": "prune.synthesis.synthesize",
    "train": "prune.recovery.train",
    "trace": "prune.remove.traced",
    "upscale": "prune.merging.layers",
    "verify": "prune.files",
    "walk": "prune.model.walk",
    "windows": "prune.data",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'prune' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


def _is_command() -> bool:
    """Whether this process is the `prune` command, which imports only what it needs so that --help answers at once."""
    words = sys.orig_argv
    as_module = "-m" in words and words[words.index("-m") + 1 :][:1] == ["prune"]
    return as_module or PurePath(sys.argv[0] if sys.argv else "").stem == "prune"


if not _is_command():
    from prune.model.register import register

    register()
