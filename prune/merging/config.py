"""Merge configs, as mergekit spells them: read strictly, into data that the plan is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from prune.document import At, Document

Dtype = Literal["float32", "bfloat16", "float16", "float64"]
Settings = Mapping[str, Any]  # parameter -> scalar, gradient, or list of {filter, value}


@dataclass(frozen=True)
class Reference:
    """A model that a config names: a folder, a Hub id, or a name given to an opened model; an adapter may go on top."""

    model: str
    revision: str | None = None
    lora: str | None = None
    lora_revision: str | None = None

    def __str__(self) -> str:
        ends = [(self.model, self.revision), (self.lora, self.lora_revision)]
        return "+".join(f"{path}@{revision}" if revision else path for path, revision in ends if path)


@dataclass(frozen=True)
class Source:
    """One input of a slice: layers [first, last) of a model (all of them when left out)."""

    model: Reference
    layers: tuple[int, int] | None
    settings: Settings
    at: At


@dataclass(frozen=True)
class Slice:
    """Layers of the merged model, made from as many layers of each source."""

    sources: tuple[Source, ...]
    base: Reference | None
    settings: Settings
    at: At


@dataclass(frozen=True)
class Token:
    """What a token's embedding is where a model lacks it (with `force`: in every model): a model's, or zero."""

    source: Reference | None
    id: int | None = None
    token: str | None = None
    zero: bool = False
    force: bool = False


@dataclass(frozen=True)
class Vocabulary:
    """Whose tokens the merged model has: `union`, `base`, or a model's; None: the inputs', which must agree."""

    source: Literal["union", "base"] | Reference | None = None
    tokens: Mapping[str, Token] = field(default_factory=dict)
    multiple_of: int = 1


@dataclass(frozen=True)
class Config:
    """A merge config. `whole` when it names models and not slices: then there is one slice with all layers."""

    method: str
    slices: tuple[Slice, ...]
    whole: bool
    base: Reference | None
    settings: Settings
    module: Settings
    dtype: Dtype | None
    out_dtype: Dtype | None
    vocabulary: Vocabulary
    chat_template: str | None
    seed: int | None
    document: Document

    @property
    def references(self) -> list[Reference]:
        """Every model it names, the base first."""
        found = [self.base] if self.base else []
        for own in self.slices:
            found += [source.model for source in own.sources] + ([own.base] if own.base else [])
        return list(dict.fromkeys(found))

    def place(self, reference: Reference) -> At:
        """Where the config first names a model."""
        for own in self.slices:
            for source in own.sources:
                if source.model == reference:
                    return source.at if source.at == ("base_model",) else (*source.at, "model")
            if own.base == reference:
                return (*own.at, "base_model")
        return ("base_model",)

    def where(self, at: At = (), *, key: bool = False) -> str:
        return self.document.where(at, key=key)
