"""What a model family is, as data: where its layers are, which slices of parameters shrink together, what configs say.

One file per family in `families/`, named after the `model_type`; the folder is the registry. See CONTRIBUTING.md for a
worked example.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from prune.errors import PruneError, unknown

Role = Literal["producer", "consumer", "follower"]
PREFIX = "prune_"  # of the model types whose layers differ


@dataclass(frozen=True)
class Part:
    """The share of one layer parameter in a unit: a dim that is laid out as `segments`, one block of units after another.

    A segment names how many positions a unit has in that block: "q" (the rows of its query heads), "kv" (the rows of
    one key or value head), "c" (one channel). Fused parameters have several: Phi-3's qkv_proj is ("q", "kv", "kv").
    """

    tensor: str  # name within the layer, e.g. "self_attn.q_proj.weight"
    dim: int
    segments: tuple[str, ...]
    role: Role
    optional: bool = False  # a bias that the checkpoint may lack


def rows(module: str, *segments: str, transposed: bool = False) -> tuple[Part, ...]:
    """The outputs of a linear: its weight's rows (columns for a transposed Conv1D) and its bias, if it has one."""
    return (
        Part(f"{module}.weight", 1 if transposed else 0, segments, "producer"),
        Part(f"{module}.bias", 0, segments, "producer", optional=True),
    )


def cols(module: str, *segments: str, transposed: bool = False) -> tuple[Part, ...]:
    """The inputs of a linear: its weight's columns (rows for a transposed Conv1D)."""
    return (Part(f"{module}.weight", 0 if transposed else 1, segments, "consumer"),)


@dataclass(frozen=True)
class Alias:
    """Another stock type that computes exactly the same, for shapes that this family's config refuses."""

    model_type: str
    settings: Mapping[str, Any]  # config values that make it the same computation
    drop: tuple[str, ...] = ()  # config keys that it does not know
    requires: Mapping[str, Any] = field(default_factory=dict)  # values without which it is not the same


@dataclass(frozen=True)
class Family:
    """A model family. Everything else in the package knows kinds of groups and nothing about families."""

    model_type: str
    classes: tuple[str, ...]  # stock classes it serves
    layers: str  # path of the list of layers, e.g. "model.layers"
    parts: Mapping[str, tuple[Part, ...]]  # kind -> what shrinks together; "query_heads" takes the "q" blocks of "heads"
    sizes: Mapping[str, str]  # number ("heads", "kv_heads", "channels", "layers", "width") -> config key
    per_layer_lists: tuple[str, ...] = ("layer_types",)  # config lists with one entry a layer
    attributes: Mapping[str, str] = field(default_factory=dict)  # module attribute in a layer -> number it holds
    alias: Alias | None = None

    def layer(self, index: int) -> str:
        return f"{self.layers}.{index}"


def names() -> list[str]:
    """The families there are: the file names of `families/`."""
    folder = Path(__file__).parent / "families"
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def of(model_type: str) -> Family:
    """The family of a config's `model_type` (also of its non-uniform form). Raises PruneError with the choices."""
    name = model_type.removeprefix(PREFIX)
    if name not in names():
        error = unknown("model family", model_type, names())
        raise PruneError(f"{error.message}; docs/families.md says how to add one")
    module = importlib.import_module(f"prune.model.families.{name}")
    family = module.FAMILY
    assert isinstance(family, Family) and family.model_type == name, name
    return family


def numbers(family: Family, config: Any) -> dict[str, int]:
    """The counts a config states: heads, kv_heads, channels, layers, width, head_dim.

    `head_dim` is what the config says, else width / heads, as the stock models read it.
    """
    found = {number: getattr(config, key, None) for number, key in family.sizes.items()}
    if found.get("kv_heads") is None:
        found["kv_heads"] = found["heads"]
    found["head_dim"] = getattr(config, "head_dim", None) or found["width"] // found["heads"]
    return found


def blocks(kind: str, sizes: Mapping[str, int]) -> tuple[int, dict[str, int]]:
    """How many units a layer has of a kind, and how many positions a unit has in each segment.

    `query_heads` has no "kv" positions: those blocks stay whole.
    """
    if kind == "heads":
        group = sizes["heads"] // sizes["kv_heads"]
        return sizes["kv_heads"], {"q": group * sizes["head_dim"], "kv": sizes["head_dim"]}
    if kind == "query_heads":
        return sizes["heads"], {"q": sizes["head_dim"]}
    assert kind == "channels", kind
    return sizes["channels"], {"c": 1}


def extents(sizes: Mapping[str, int]) -> dict[str, int]:
    """Positions in a whole block of each segment kind."""
    return {
        "q": sizes["heads"] * sizes["head_dim"],
        "kv": sizes["kv_heads"] * sizes["head_dim"],
        "c": sizes["channels"],
    }


