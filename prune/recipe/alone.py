"""A step that a config of its own describes, run with no recipe around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from prune.document import Document
from prune.errors import PruneError, unknown
from prune.recipe.bind import bind, defaults, options
from prune.recipe.load import document_of


@dataclass(frozen=True)
class Around:
    """The keys that a recipe has for all its steps.

    output: the folder to write.
    seed: of everything random.
    device: `auto` takes a CUDA device where there is one.
    dtype: what is computed in.
    """

    output: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"


@dataclass(frozen=True)
class Alone:
    """A checked config: the keys around the step, and the step's options with their defaults."""

    around: Around
    options: dict[str, Any]
    document: Document

    def blame(self, error: PruneError) -> PruneError:
        """The error, placed at the option that it names."""
        if error.where in self.options:
            return PruneError(error.message, where=self.document.where((error.where,)))
        return error


def alone(config: str | Path | dict, step: Callable) -> Alone:
    """A config, a file or a dict, bound to a step: its options as they stand in a recipe, and the keys of `Around`.

    PruneError with its place for what does not fit.
    """
    document = document_of(config)
    own, around = options(step), options(Around)
    for name in document.value:
        if name not in own and name not in around:
            raise unknown("key", name, [*own, *around]).at(document.where((name,), key=True))
    keys = bind(Around, {k: v for k, v in document.value.items() if k in around}, document, (), kind="key")
    given = {name: value for name, value in document.value.items() if name in own}
    return Alone(Around(**keys), defaults(step, given) | bind(step, given, document, ()), document)
