"""The modelling file that loads a checkpoint whose layers differ where prune is not there.

It is the very source that loads it here (prune/model/nonuniform.py), with the family's data as literals above it and
the two classes below.
"""

from __future__ import annotations

import inspect
from pprint import pformat
from typing import NamedTuple

import transformers

from prune.model import family as families
from prune.model import halves, nonuniform
from prune.model.family import Family
from prune.model.model import Model
from prune.model.register import AUTO, classes

FILE = "modeling_prune.py"
VERSION = "5.17"  # of transformers: the first with per_layer_config that prune knows
SOURCES = (
    families.numbers,
    families.extents,
    halves.Nothing,
    halves.leave_out,
    nonuniform.layer_sizes,
    nonuniform.narrow,
    nonuniform._has,
    nonuniform._shrink,
    nonuniform._there,
    nonuniform.set_attributes,
)
TEXT = '''"""{stock} whose layers differ in size, as config.json says layer by layer (`per_layer_config`).

Written by prune for `trust_remote_code=True`; transformers {version} or newer and torch are all it needs.
"""

from __future__ import annotations

from collections import namedtuple
from types import SimpleNamespace

import torch
from torch import nn
from transformers import Cache, {config}, {stock}
from transformers.pytorch_utils import Conv1D

Part = namedtuple("Part", "tensor dim segments")
Half = namedtuple("Half", "module others returns passes")
HELD = {held}
FAMILY = SimpleNamespace({data})


{sources}

class {ours_config}({config}):
    model_type = "{model_type}"


class {ours}({stock}):
    config_class = {ours_config}

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        narrow(self, FAMILY, layer_sizes(FAMILY, config))
'''


def modelling(model: Model) -> str:
    """The file's text, for the family and class of a model whose layers differ."""
    ours, stock = model.architecture, model.architecture.__bases__[0]
    config = type(model.config)
    sources = "\n\n".join(inspect.getsource(source) for source in SOURCES)
    return TEXT.format(
        stock=stock.__name__,
        config=config.__bases__[0].__name__,
        ours=ours.__name__,
        ours_config=config.__name__,
        model_type=model.config.model_type,
        data=_data(model.family),
        held=nonuniform.HELD,
        sources=sources.replace("families.numbers(", "numbers("),
        version=VERSION,
    )


def auto_map(model: Model) -> dict[str, str]:
    """Which of the file's classes each Auto class takes."""
    module, stock = FILE.removesuffix(".py"), model.architecture.__bases__[0]
    known = [auto for auto in AUTO if stock in classes(getattr(transformers, auto), type(model.config).__bases__[0])]
    found = dict.fromkeys(known, f"{module}.{model.architecture.__name__}")
    return {"AutoConfig": f"{module}.{type(model.config).__name__}", **found}


class Part(NamedTuple):
    """What the sources read of a part."""

    tensor: str
    dim: int
    segments: tuple[str, ...]


class Half(NamedTuple):
    """What the sources read of a sublayer."""

    module: str
    others: tuple[str, ...]
    returns: int
    passes: int | None


def _data(family: Family) -> str:
    """What the sources read of the family, as arguments."""
    kinds = {kind: [Part(p.tensor, p.dim, p.segments) for p in parts] for kind, parts in family.parts.items()}
    values = {
        "layers": family.layers,
        "sizes": dict(family.sizes),
        "parts": kinds,
        "sublayers": {
            half: Half(own.module, own.others, own.returns, own.passes) for half, own in family.sublayers.items()
        },
        "attributes": dict(family.attributes),
        "configured": family.configured,
    }
    shown = {
        name: pformat(value, width=110, sort_dicts=False).replace("\n", "\n    ") for name, value in values.items()
    }
    return "\n" + "".join(f"    {name}={text},\n" for name, text in shown.items())
