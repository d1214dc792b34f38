"""An opened model: config, family and tensors on demand, from a folder, the Hub, memory, or a cut of any of these."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prune.errors import PruneError
from prune.model import family as families
from prune.model.companions import folder_without_code
from prune.model.family import Family
from prune.model.tensors import Tensors

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Model:
    """A model that is opened, not loaded. Never changed: a cut gives a new one.

    `tensors` are named as the module names them. `files` are the checkpoint's other files (tokenizer, generation
    config, chat template), carried along byte for byte. `source` says where it came from, in words.
    """

    config: PreTrainedConfig
    family: Family
    architecture: type[PreTrainedModel]
    tensors: Tensors
    source: str
    files: Mapping[str, Path] = field(default_factory=dict)
    weights: tuple[Path, ...] = ()  # the files that hold the tensors, when they lie on disk
    energies: Mapping[str, Tensor] = field(default_factory=dict)  # norm's weight -> mean square of each of its inputs

    @property
    def uniform(self) -> bool:
        """Whether stock transformers loads it: all layers have one shape."""
        return not self.config.model_type.startswith(families.PREFIX)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """What the config states: layers, width, heads, kv_heads, head_dim, channels (of the widest layers)."""
        return families.numbers(self.family, self.config)

    def layer(self, index: int) -> str:
        """The path of a layer, counted through an encoder and on through the decoder."""
        encoder = self.numbers.get("encoder_layers", 0)
        return f"{self.family.encoder}.{index}" if index < encoder else self.family.layer(index - encoder)

    def sizes(self, layer: int) -> dict[str, int]:
        """heads, kv_heads, channels, experts, expert_channels and head_dim of one layer, from its tensors' shapes.

        `attention` and `mlp` are 1, or 0 where the layer has no such half.
        """
        head_dim = self.numbers["head_dim"]
        found = dict.fromkeys(("q", "kv", "qkv", "c", "e", "x"), 0)
        parts = [part for kind in self.family.parts.values() for part in kind]
        for part in sorted(parts, key=lambda part: len(set(part.segments))):  # plain blocks first, then fused ones
            info = self.tensors.info.get(f"{self.layer(layer)}.{part.tensor}")
            unknown = {segment for segment in part.segments if not found[segment]}
            if info is None or len(unknown) != 1:
                continue
            segment = unknown.pop()
            known = sum(found[s] for s in part.segments)
            found[segment] = (info.shape[part.dim] - known) // part.segments.count(segment)
        return {
            "heads": found["q"] // head_dim,
            "kv_heads": (found["q"] if found["qkv"] else found["kv"]) // head_dim,
            "channels": found["c"],
            "experts": found["e"],
            "expert_channels": found["x"],
            "head_dim": head_dim,
            "attention": int(self.has(layer, "attention")),
            "mlp": int(self.has(layer, "mlp")),
        }

    def shape(self) -> dict[str, Any]:
        """What the whole model looks like: width and head_dim, and for each layer the numbers of `sizes`."""
        layers = [self.sizes(layer) for layer in range(self.numbers["layers"])]
        counted = ("heads", "kv_heads", "channels", "experts", "expert_channels")
        return {
            "width": self.numbers["width"],
            "head_dim": self.numbers["head_dim"],
            **{name: [sizes[name] for sizes in layers] for name in counted},
        }

    def half(self, layer: int, kind: str) -> list[str]:
        """The tensors of a layer's attention or mlp, with the norms that belong to it."""
        inside = tuple(f"{self.layer(layer)}.{path}." for path in self.family.sublayers[kind].paths)
        return [name for name in self.names(layer) if name.startswith(inside)]

    def has(self, layer: int, kind: str) -> bool:
        """Whether a layer has attention, or an mlp; every layer of a family that cannot leave them out has both."""
        return kind not in self.family.sublayers or bool(self.half(layer, kind))

    def names(self, layer: int) -> list[str]:
        """The tensors of one layer."""
        prefix = self.layer(layer) + "."
        return [name for name in self.tensors.info if name.startswith(prefix)]

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer, from its own files. Raises PruneError when it has none."""
        return tokenizer_in(self.files, self.source)

    def image_processor(self) -> Any:
        """What turns images into this model's pixel values, from its own file. Raises PruneError when it has none."""
        from transformers import AutoImageProcessor

        if "preprocessor_config.json" not in self.files:
            raise PruneError("the model folder has no preprocessor_config.json", where=self.source)
        return _companion(AutoImageProcessor, "image processor", self.files, self.source)

    def fingerprint(self) -> dict[str, str]:
        """sha256 of every file it was opened from; of every tensor for a model in memory."""
        if self.weights:
            config = {"config.json": self.weights[0].parent / "config.json"}
            files = {**config, **self.files, **{path.name: path for path in self.weights}}
            return {name: _sha256(path) for name, path in sorted(files.items())}
        return {name: _digest(self.tensors.read(name)) for name in sorted(self.tensors.info)}


def tokenizer_in(files: Mapping[str, Path], source: str) -> PreTrainedTokenizerBase:
    """The tokenizer that lies in files. Raises PruneError, placed at `source`, when there is none."""
    from transformers import AutoTokenizer

    if not any(name.startswith("tokenizer") for name in files):
        raise PruneError("the model folder has no tokenizer files", where=source)
    tokenizer: PreTrainedTokenizerBase = _companion(AutoTokenizer, "tokenizer", files, source)
    return tokenizer


def _companion(kind: Any, name: str, files: Mapping[str, Path], source: str) -> Any:
    """What an Auto class makes of the files beside the weights."""
    try:
        with folder_without_code(files) as folder:
            return kind.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PruneError(f"the {name} cannot be read: {reason}", where=source) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(tensor: Any) -> str:
    import torch

    return hashlib.sha256(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()).hexdigest()
