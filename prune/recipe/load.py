"""A recipe: found, read, overridden from the command line, and bound to the functions it calls."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from pydantic import Field

from prune.document import At, Document, read
from prune.errors import PruneError, unknown
from prune.recipe.bind import bind, defaults, show
from prune.recipe.override import override
from prune.run import CALIBRATION, Calibration

Words = Mapping[str, Callable]  # step word -> function(run, **options)
_PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Settings:
    """The keys of a recipe.

    model: `bundled`, a local folder, or a Hub id; with a revision, the mapping `{id: ..., revision: ...}`.
    steps: what is done, in this order: a list of words with their options.
    output: the folder to write; `--output` names another.
    seed: of everything random.
    device: `auto` takes a CUDA device where there is one.
    dtype: what is computed in; `auto` is float32 on a CPU and the weights' own type on a CUDA device.
    calibration: the text that criteria look at.
    """

    model: str | dict
    steps: list
    output: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    calibration: dict | None = None


@dataclass(frozen=True)
class Source:
    """The keys of `model` when it is a mapping."""

    id: str
    revision: str | None = None


@dataclass(frozen=True)
class Step:
    """One call: `function(run, **options)`. `options` are the ones given; `bound` has the defaults too."""

    word: str
    function: Callable
    options: dict[str, Any]
    document: Document
    at: At

    @property
    def bound(self) -> dict[str, Any]:
        return defaults(self.function, self.options) | self.options

    def where(self, option: str | None = None) -> str:
        """Where the step, or one of its options, stands in the recipe."""
        if option is None or option not in self.options:
            return self.document.where(self.at, key=True)
        return self.document.where((*self.at, option))

    def blame(self, error: PruneError) -> PruneError:
        """The error, placed at this step, at the option that it names as its place, or at the recipe's calibration."""
        at = tuple((error.where or "").split("."))
        if at[0] == CALIBRATION and CALIBRATION in self.document.value:
            return PruneError(error.message, where=self.document.where(at, key=True))
        option = error.where if error.where in self.bound else None
        return PruneError(error.message if option else str(error), where=self.where(option))


@dataclass(frozen=True)
class Recipe:
    """A checked recipe. `given` is what it says, overrides included; `document` knows where each thing stands."""

    name: str
    model: str
    revision: str | None
    output: str | None
    seed: int
    device: str
    dtype: str
    calibration: Calibration | None
    steps: tuple[Step, ...]
    given: dict[str, Any]
    document: Document


def document_of(recipe: str | Path | dict) -> Document:
    """The document in a file, of a packaged recipe's name, or around a dict. PruneError as `find` and `read`."""
    return Document("recipe", _as_read(recipe)) if isinstance(recipe, dict) else read(find(recipe))


def _as_read(value: Any) -> Any:
    """A value from Python as a file would give it: a path is text, a tuple a list."""
    if isinstance(value, Mapping):
        return {key: _as_read(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_read(inner) for inner in value]
    return str(value) if isinstance(value, PurePath) else value


def load(recipe: str | Path | dict | Document, words: Words, *, overrides: Iterable[str] = ()) -> Recipe:
    """A recipe with `overrides` such as "steps.0.ratio=0.5" applied, and its steps bound to the functions in `words`.

    PruneError, one line with its place, for everything that can be known without opening the model.
    """
    document = recipe if isinstance(recipe, Document) else document_of(recipe)
    for text in overrides:
        document = override(document, text, words)
    settings = Settings(**bind(Settings, document.value, document, (), kind="key"))
    model = {"id": settings.model} if isinstance(settings.model, str) else settings.model
    source = Source(**bind(Source, model, document, ("model",), kind="key"))
    return Recipe(
        name=document.name,
        model=source.id,
        revision=source.revision,
        output=settings.output,
        seed=settings.seed,
        device=settings.device,
        dtype=settings.dtype,
        calibration=_calibration(settings.calibration, document),
        steps=_steps(settings.steps, words, document),
        given=document.value,
        document=document,
    )


def _calibration(given: dict | None, document: Document) -> Calibration | None:
    if given is None:
        return None
    return Calibration(**bind(Calibration, given, document, ("calibration",), kind="key"))


def _steps(given: list, words: Words, document: Document) -> tuple[Step, ...]:
    if not given:
        raise PruneError(f"steps is empty; choices: {', '.join(words)}", where=document.where(("steps",)))
    return tuple(_step(item, words, document, ("steps", index)) for index, item in enumerate(given))


def _step(given: object, words: Words, document: Document, at: At) -> Step:
    if isinstance(given, str):
        given = {given: {}}
    if not isinstance(given, dict) or len(given) != 1:
        found = f"{len(given)} words" if isinstance(given, dict) else show(given)
        raise PruneError(
            f"a step is one word with its options, as in `- remove: {{ratio: 0.25}}`, not {found}",
            where=document.where(at),
        )
    word, values = next(iter(given.items()))
    if word not in words:
        raise unknown("step", word, words).at(document.where((*at, word), key=True))
    options = bind(words[word], {} if values is None else values, document, (*at, word))
    return Step(word, words[word], options, document, (*at, word))


def find(recipe: str | Path) -> Path:
    """The file of a recipe: a path, else the name of one that comes with the package. PruneError with the nearest."""
    path = Path(recipe)
    if path.is_file():
        return path
    packaged = shelf()
    if str(recipe) in packaged:
        return packaged[str(recipe)]
    if path.is_dir():
        raise PruneError("is a folder, not a recipe", where=str(recipe))
    beside = [str(p) for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    near = difflib.get_close_matches(str(recipe), [*packaged, *beside], n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    raise PruneError(f"no such recipe{hint} packaged ones: {', '.join(packaged) or 'none'}", where=str(recipe))


def shelf() -> dict[str, Path]:
    """The recipes that come with the package: name -> file. In a checkout they lie beside the package, not in it."""
    folders = (_PACKAGE / "recipes", _PACKAGE.parent / "recipes")
    folder = next((folder for folder in folders if folder.is_dir()), folders[0])
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
