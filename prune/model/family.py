"""What a model family is, as data: where its layers are, which slices shrink together, what configs say.

One file per family in `families/`, named after the `model_type`; the folder is the registry. A worked example is in
docs/adding-a-family.md.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from prune.errors import PruneError, unknown

Role = Literal["producer", "consumer", "follower", "router"]
PREFIX = "prune_"  # of the model types whose layers differ

# Reasons that several families give, in `fixed` and `refused`.
SQUARE = "attention is as wide as the model, and no config says otherwise"
MEANS = "its LayerNorms subtract the mean over the width, which no weight puts right when positions go"


@dataclass(frozen=True)
class Part:
    """The share of one layer parameter in a unit: a dim laid out as `segments`, one block of units after another.

    A segment names how many positions a unit has in that block: "q" (the rows of its query heads), "kv" (the rows of
    one key or value head), "qkv" (a head's query, key and value rows, side by side), "c" (one channel), "e" (one
    expert), "x" (one channel of an expert). Fused parameters have several: Phi-3's qkv_proj is ("q", "kv", "kv").
    """

    tensor: str  # name within the layer, e.g. "self_attn.q_proj.weight"
    dim: int
    segments: tuple[str, ...]
    role: Role
    optional: bool = False  # a bias that the checkpoint may lack, or a module that only some layers have
    stacked: bool = False  # dim 0 stacks the experts, and each has units of its own
    norm_of: str = ""  # for a norm that runs over the cut dim: the linear within the layer whose outputs it norms


def rows(module: str, *segments: str, transposed: bool = False, optional: bool = False) -> tuple[Part, ...]:
    """The outputs of a linear: its weight's rows (columns for a transposed Conv1D) and its bias, if it has one."""
    return (
        Part(f"{module}.weight", 1 if transposed else 0, segments, "producer", optional),
        Part(f"{module}.bias", 0, segments, "producer", optional=True),
    )


def cols(module: str, *segments: str, transposed: bool = False, optional: bool = False) -> tuple[Part, ...]:
    """The inputs of a linear: its weight's columns (rows for a transposed Conv1D)."""
    return (Part(f"{module}.weight", 0 if transposed else 1, segments, "consumer", optional),)


def norm(module: str, segment: str, linear: str) -> tuple[Part, ...]:
    """A norm over all heads at once: sliced, and rescaled because its mean runs over fewer of `linear`'s outputs."""
    return (Part(f"{module}.weight", 0, (segment,), "follower", norm_of=linear),)


def experts(module: str, router: str) -> dict[str, tuple[Part, ...]]:
    """The kinds of a mixture: whole experts with their rows of the router, and the channels inside each expert.

    `module` holds the stacked parameters gate_up_proj (experts, 2 x inner, width) and down_proj (experts, width,
    inner).
    """
    gate_up, down = f"{module}.gate_up_proj", f"{module}.down_proj"
    return {
        "experts": (
            Part(f"{router}.weight", 0, ("e",), "router", optional=True),
            Part(gate_up, 0, ("e",), "follower", optional=True),
            Part(down, 0, ("e",), "follower", optional=True),
        ),
        "channels": (
            Part(gate_up, 1, ("x", "x"), "producer", optional=True, stacked=True),
            Part(down, 2, ("x",), "consumer", optional=True, stacked=True),
        ),
    }


@dataclass(frozen=True)
class Sublayer:
    """A half of a layer that can be left out, so that the stream passes it by: attention, or the MLP.

    `module` is what then gives zeros; `others` belong to it and pass on what they are given (its norms). A module that
    adds to the stream by itself gives the argument at the place `passes` instead.
    """

    module: str
    others: tuple[str, ...] = ()
    returns: int = 0  # how many values the module returns in a tuple; 0 for a plain tensor
    passes: int | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """The modules whose parameters go."""
        return (self.module, *self.others)


def halves(attention: str, mlp: str, *, norms: tuple[tuple[str, ...], tuple[str, ...]]) -> dict[str, Sublayer]:
    """Attention and MLP of a layer, by their modules and the norms that belong to each."""
    return {"attention": Sublayer(attention, norms[0], returns=2), "mlp": Sublayer(mlp, norms[1])}


@dataclass(frozen=True)
class Stream:
    """What is as wide as the model besides the linears of a layer's parts: norms, embedding, head.

    Norms are root mean squares over the width. `offset` is what they add to their weight; `scaled` says that the
    embedding is multiplied by the square root of the width.
    """

    norms: tuple[str, ...]  # modules in a layer
    embedding: str = "model.embed_tokens"
    final: str = "model.norm"
    head: str = "lm_head"
    others: tuple[tuple[str, int], ...] = ()  # further tensors in a layer and their dim of that width
    offset: float = 0.0
    scaled: bool = False


@dataclass(frozen=True)
class Alias:
    """Another stock type that computes exactly the same, for shapes that this family's config refuses."""

    model_type: str
    settings: Mapping[str, Any]  # config values that make it the same computation
    drop: tuple[str, ...] = ()  # config keys that it does not know
    requires: Mapping[str, Any] = field(default_factory=dict)  # values without which it is not the same


@dataclass(frozen=True)
class Stored:
    """How checkpoints name what the module names otherwise."""

    renames: tuple[tuple[str, str], ...] = ()  # (fragment on disk, fragment in the module), applied in this order
    # module tensor within a layer -> its experts' tensors on disk, "{}" being the expert, laid out row after row
    merged: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()  # patterns of leftovers that published checkpoints carry and no class of ours reads


@dataclass(frozen=True)
class Family:
    """A model family. Everything else in the package knows kinds of groups and nothing about families."""

    model_type: str
    classes: tuple[str, ...]  # stock classes it serves
    layers: str  # path of the list of layers, e.g. "model.layers"
    parts: Mapping[
        str, tuple[Part, ...]
    ]  # kind -> what shrinks together; "query_heads" takes the "q" blocks of "heads"
    sizes: Mapping[str, str]  # number ("heads", "kv_heads", "channels", "layers", "width" ...) -> config key
    sublayers: Mapping[str, Sublayer] = field(default_factory=dict)  # "attention", "mlp" -> what goes with it
    stream: Stream | None = None  # None where the width cannot be cut
    encoder: str = ""  # path of a list of layers that comes before `layers`; counted by the number "encoder_layers"
    per_layer_lists: tuple[str, ...] = ("layer_types",)  # config lists with one entry a layer
    first_layers: tuple[str, ...] = ("max_window_layers",)  # config counts of layers from the first on
    dense_layers: str = ""  # config list of the layers that have an MLP in place of experts
    settings: Mapping[str, Any] = field(default_factory=dict)  # config values that hold for every cut
    fixed: Mapping[str, str] = field(default_factory=dict)  # numbers that no stock config states -> why
    refused: Mapping[str, str] = field(default_factory=dict)  # kinds that cannot be cut at all -> why: see `reason`
    numbered: tuple[str, ...] = ()  # config switches that tie a layer to its number, so that none may be dropped
    attributes: Mapping[str, str] = field(default_factory=dict)  # module attribute in a layer -> number it holds
    configured: tuple[str, ...] = ()  # modules in a layer that read numbers off their config while they run
    leading: tuple[str, ...] = ()  # tensors that only a stack's first layer has; they move to whichever comes first
    carries: Mapping[str, int] = field(default_factory=dict)  # layer argument -> place in the previous layer's outputs
    returns: int = 0  # how many values a layer returns in a tuple; 0 for a plain tensor
    attention: str = "sdpa"  # how it is computed: what transformers itself picks
    differing: bool = True  # whether there is a form whose layers differ
    residual: bool = True  # whether a layer only adds to what goes through it, and so may add nothing
    normed_after: Mapping[str, Any] = field(default_factory=dict)  # config values with which it does more than add
    rescales: str = ""  # what an MLP's output passes before it is added: a norm in the layer, or a config factor
    adds: tuple[str, ...] = ()  # weights in a layer, besides the consumers in `parts`, whose products it adds
    alias: Alias | None = None
    stored: Stored = Stored()

    def layer(self, index: int) -> str:
        """The path of a layer of `layers`; `Model.layer` knows about encoders too."""
        return f"{self.layers}.{index}"

    @property
    def structural(self) -> tuple[str, ...]:
        """The numbers that may differ between layers: those of its kinds that a config states."""
        kinds = {"heads": "heads", "kv_heads": "heads", "channels": "channels", "experts": "experts"}
        kinds["expert_channels"] = "channels"
        return tuple(number for number, kind in kinds.items() if number in self.sizes and kind in self.parts)


def reason(family: Family, kind: str) -> str:
    """Why a model of a family offers no groups of a kind: what the family says, else what follows from its data."""
    if kind in family.refused:
        return family.refused[kind]
    if kind == "layers" and family.numbered:
        return f"{', '.join(family.numbered)} ties each to its number"
    if kind == "query_heads":
        return "every key-value head has one query head; remove heads instead"
    if kind == "experts":
        return "it has none"
    if kind in ("attention", "mlp"):
        return "no layer has one any more" if kind in family.sublayers else "its family names no `sublayers`"
    return "its family names no `stream`" if kind == "width" else f"its family names no `parts` of {kind}"


def names() -> list[str]:
    """The families there are: the file names of `families/`."""
    folder = Path(__file__).parent / "families"
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def of(model_type: str) -> Family:
    """The family of a config's `model_type` (also of its non-uniform form). Raises PruneError with the choices."""
    name = model_type.removeprefix(PREFIX)
    if name not in names():
        error = unknown("model family", model_type, names())
        raise PruneError(
            f"{error.message}; docs/adding-a-family.md says how to add one, and prune.trace cuts other networks"
        )
    module = importlib.import_module(f"prune.model.families.{name}")
    family = module.FAMILY
    assert isinstance(family, Family) and family.model_type == name, name
    return family


def numbers(family: Family, config: Any) -> dict[str, int]:
    """The counts a config states: heads, kv_heads, channels, layers, width, head_dim and, for mixtures, experts.

    `head_dim` is what the config says, else width / heads, as the stock models read it; channels are 4 x width where
    the config leaves them out, or those of an expert where there are no others. `layers` has an encoder's too.
    """
    found = {number: getattr(config, key, None) for number, key in family.sizes.items()}
    given = {number: int(value) for number, value in found.items() if value is not None}
    width, heads = given["width"], given["heads"]
    channels = given.get("expert_channels", 4 * width)
    defaults = {"kv_heads": heads, "channels": channels, "head_dim": width // max(heads, 1)}
    return {**defaults, **given, "layers": given["layers"] + given.get("encoder_layers", 0)}


def blocks(kind: str, sizes: Mapping[str, int]) -> tuple[int, dict[str, int]]:
    """How many units a layer has of a kind, and how many positions a unit has in each segment.

    `query_heads` has no "kv" positions: those blocks stay whole. In a layer of experts a channel is one of one expert.
    """
    head_dim = sizes["head_dim"]
    if kind == "heads":
        group = sizes["heads"] // max(sizes["kv_heads"], 1)
        return sizes["kv_heads"], {"q": group * head_dim, "kv": head_dim, "qkv": 3 * head_dim}
    if kind == "query_heads":
        return sizes["heads"], {"q": head_dim}
    if kind == "experts":
        return sizes["experts"], {"e": 1}
    assert kind == "channels", kind
    if sizes["experts"]:
        return sizes["experts"] * sizes["expert_channels"], {"x": 1}
    return sizes["channels"], {"c": 1}


def extents(sizes: Mapping[str, int]) -> dict[str, int]:
    """Positions in a whole block of each segment kind."""
    return {
        "q": sizes["heads"] * sizes["head_dim"],
        "kv": sizes["kv_heads"] * sizes["head_dim"],
        "qkv": 3 * sizes["heads"] * sizes["head_dim"],
        "c": sizes["channels"],
        "e": sizes.get("experts", 0),
        "x": sizes.get("expert_channels", 0),
    }
