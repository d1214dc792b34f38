"""A model that no family serves: what its layers hold, which family they are most like, and what is missing.

Known from config.json and the headers of the weights alone, so that it can be said of any checkpoint.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from prune.errors import PruneError
from prune.model import family as families
from prune.model import hub
from prune.model.checkpoint import read_folder
from prune.model.family import Family
from prune.model.tensors import Info

PAGE = "docs/adding-a-family.md"
NUMBERS = ("layers", "width", "heads", "kv_heads", "channels", "head_dim")
SPELLINGS = {  # number -> what configs call it, in the order of how often
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers"),
    "width": ("hidden_size", "n_embd", "d_model", "dim"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num"),
    "channels": ("intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim", "d_ff", "hidden_dim"),
    "head_dim": ("head_dim", "d_kv", "kv_channels"),
}


def stranger(source: str, *, revision: str | None = None) -> dict[str, Any] | None:
    """What is known of a model whose type has no family, or None for one that has.

    `layers` is where the repeated layers stand and how many; `tensors` what one holds, name -> shape; `nearest` the
    family with most of them, and of its tensors those it `has` and `lacks`, and what stands `beside` them; `config`
    maps each number to the key that states it, or None; `channels` are the linears whose shapes look like an
    MLP's; `draft` is a family file to start from. Raises PruneError for a folder without config.json or safetensors.
    """
    folder = Path(source).expanduser()
    if source == "bundled" or not (folder.is_dir() or hub.looks_like_id(source)):
        return None
    remote = None if folder.is_dir() else hub.headers(source, revision)
    values = _config(remote[0] if remote else folder)
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type.removeprefix(families.PREFIX) in families.names():
        return None
    info = (remote[1] if remote else read_folder(folder)).info
    path, count, tensors = _layers(info)
    nearest, has, lacks, beside = _nearest(tensors)
    config = {number: next((key for key in SPELLINGS[number] if key in values), None) for number in NUMBERS}
    width = values.get(config["width"] or "")
    found = {
        "source": source,
        "model_type": model_type,
        "supported": False,
        "known_to_transformers": model_type in CONFIG_MAPPING,
        "layers": {"path": path, "count": count},
        "tensors": {name: list(shape) for name, shape in tensors.items()},
        "nearest": nearest,
        "has": has,
        "lacks": lacks,
        "beside": beside,
        "config": config,
        "channels": _channels(tensors, width) if isinstance(width, int) else [],
        "page": PAGE,
    }
    draft = _draft(found, values.get("architectures") or []) if count and found["known_to_transformers"] else ""
    return {**found, "draft": draft}


def _config(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise PruneError(f"no readable config.json: {error}", where=str(folder)) from None
    return values if isinstance(values, dict) else {}


def _layers(info: Mapping[str, Info]) -> tuple[str, int, dict[str, tuple[int, ...]]]:
    """The path under which most parameters repeat by number, how often, and the shapes of the fullest layer."""
    paths: Counter[str] = Counter()
    for name, found in info.items():
        if match := re.match(r"(.*?)\.(\d+)\.", name):
            paths[match[1]] += found.bytes
    if not paths:
        return "", 0, {}
    path = paths.most_common(1)[0][0]
    held: dict[int, dict[str, tuple[int, ...]]] = {}
    for name, found in info.items():
        if match := re.fullmatch(rf"{re.escape(path)}\.(\d+)\.(.+)", name):
            held.setdefault(int(match[1]), {})[match[2]] = found.shape
    return path, len(held), max(held.values(), key=len)


def _nearest(tensors: Mapping[str, Any]) -> tuple[str, list[str], list[str], list[str]]:
    """The family whose tensors are found most, of these the ones found and lacking, and what no part of it names."""

    def match(family: Family) -> tuple[set[str], set[str]]:
        names = {_renamed(name, family) for name in tensors}
        parts = [part for kind in family.parts.values() for part in kind]
        wanted = {part.tensor for part in parts if not part.optional} or {part.tensor for part in parts}
        return wanted & names, wanted - names

    known = {name: match(families.of(name)) for name in families.names()}
    best = max(known, key=lambda name: (len(known[name][0]) - len(known[name][1]), name == "llama"))
    has, lacks = known[best]
    own = {part.tensor for kind in families.of(best).parts.values() for part in kind}
    beside = [
        name for name, shape in tensors.items() if len(shape) > 1 and _renamed(name, families.of(best)) not in own
    ]
    return best, sorted(has), sorted(lacks), beside


def _renamed(name: str, family: Family) -> str:
    for before, after in family.stored.renames:
        name = name.replace(before, after)
    return name


def _channels(tensors: Mapping[str, tuple[int, ...]], width: int) -> list[dict[str, Any]]:
    """Linears of one module that look like an MLP: one reads channels (width, c), the others make them (c, width)."""
    modules: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in tensors.items():
        if name.endswith(".weight") and len(shape) == 2:
            linear = name.removesuffix(".weight")
            modules.setdefault(linear.rpartition(".")[0], {})[linear] = shape
    found = []
    for linears in modules.values():
        for reader, (out, channels) in linears.items():
            makers = [name for name, shape in linears.items() if shape == (channels, width) and name != reader]
            if out == width and channels != width and makers:
                found.append({"channels": channels, "made_by": makers, "read_by": reader})
    return found


def _draft(found: Mapping[str, Any], architectures: list[str]) -> str:
    """A family file: whole where the nearest family's tensors are all there, else with what shapes tell."""
    name, path = found["model_type"], found["layers"]["path"]
    classes = f"{tuple(architectures)!r}" if architectures else '("...",)'
    if not found["lacks"] and not found["beside"]:
        return (
            f'"""{name}: laid out as {found["nearest"]}."""\n\nfrom dataclasses import replace\n\n'
            f"from prune.model.families.{found['nearest']} import FAMILY as LIKE\n\n"
            f'FAMILY = replace(\n    LIKE, model_type="{name}", classes={classes}, layers="{path}",\n'
            "    alias=None, sublayers={}, stream=None,\n)\n"
            f"# A guess by names and shapes, to be proved: pytest tests/model/test_families.py -k {name}\n"
        )
    sizes = "".join(f'        "{number}": "{key}",\n' for number, key in found["config"].items() if key)
    mlp = [
        ", ".join([*(f'*rows("{maker}", "c")' for maker in one["made_by"]), f'*cols("{one["read_by"]}", "c")'])
        for one in found["channels"][:1]
    ]
    channels = f'"channels": ({mlp[0]}),' if mlp else '# "channels": (...),'
    used = {f"{linear}.weight" for one in found["channels"][:1] for linear in (*one["made_by"], one["read_by"])}
    rest = ", ".join(tensor for tensor in found["beside"] if tensor not in used)
    return (
        f'"""{name}."""\n\nfrom prune.model.family import Family, cols, rows\n\n'
        f'FAMILY = Family(\n    model_type="{name}",\n    classes={classes},\n    layers="{path}",\n'
        f'    parts={{\n        # "heads": (...), of: {rest}\n        {channels}\n    }},\n'
        f"    sizes={{\n{sizes}    }},\n)\n"
    )
