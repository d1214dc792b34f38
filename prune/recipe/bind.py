"""Values from a recipe become keyword arguments of a function: its signature says which, and what they may be."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import annotated_types
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from typing_extensions import is_typeddict  # that of typing does not know those of typing_extensions

from prune.document import At, Document, parse_value, spell
from prune.errors import PruneError, unknown
from prune.options import spelt

Where = Callable[..., str]
_HANDED = ("run", "job")  # what steps and formats are handed, beside their options
_PLAIN = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
_BOUNDS = {
    annotated_types.Ge: ("ge", "at least"),
    annotated_types.Gt: ("gt", "above"),
    annotated_types.Le: ("le", "at most"),
    annotated_types.Lt: ("lt", "below"),
    annotated_types.MultipleOf: ("multiple_of", "a multiple of"),
    annotated_types.MinLen: ("min_length", "of length at least"),
    annotated_types.MaxLen: ("max_length", "of length at most"),
}


@dataclass(frozen=True)
class Option:
    """One keyword argument: what it may be, and its default where it has one."""

    name: str
    annotation: Any
    default: Any
    required: bool


def words(package: types.ModuleType) -> dict[str, Callable]:
    """The recipe words of a package: each file's name is one, and the function of that name in it is what it calls."""
    names = sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))
    return {name: getattr(importlib.import_module(f"{package.__name__}.{name}"), name) for name in names}


def options(function: Callable, given: object = None) -> dict[str, Option]:
    """The options of a function (a step without its `run`, or a dataclass), in the order of its signature.

    A step that takes `**options` has an attribute `more`: from what is given, it finds the function that they go to,
    whose options are then the step's too. PruneError where it finds none.
    """
    hints = get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters.values()
    own = {
        spelt(p.name): Option(spelt(p.name), hints[p.name], p.default, p.default is inspect.Parameter.empty)
        for p in parameters
        if p.name not in _HANDED and p.kind is not p.VAR_KEYWORD
    }
    more = getattr(function, "more", None)
    return {**own, **options(more(given if isinstance(given, Mapping) else {}))} if more else own


def bind(function: Callable, given: object, document: Document, at: At, *, kind: str = "option") -> dict[str, Any]:
    """The arguments that `given` (the value at `at`) makes for `function`, without defaults.

    PruneError, placed in the document, for anything the signature does not take or that is missing. Types are taken at
    their word: "0.25" is no number, 1 is a float, 1.0 is not an int.
    """
    if not isinstance(given, Mapping):
        raise PruneError(f"must be a mapping of {kind}s, not {show(given)}", where=document.where(at))
    try:
        known = options(function, given)
    except PruneError as error:  # it names the option that decides which others there are
        raise PruneError(error.message, where=document.where((*at, error.where) if error.where else at)) from None
    for name in given:
        if name not in known:
            raise unknown(kind, name, known).at(document.where((*at, name), key=True))
    for option in known.values():
        if option.required and option.name not in given:
            raise PruneError(f"{option.name} is missing: {describe(option.annotation)}", where=document.where(at))
    return {name: _check(known[name], value, document, (*at, name)) for name, value in given.items()}


def bind_texts(function: Callable, given: Iterable[str], *, option: str = "--set") -> dict[str, Any]:
    """The arguments that texts such as "dtype=int8" make for `function`: a command's `--set`. PruneError as `bind`."""
    values: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise PruneError("needs NAME=VALUE", where=f"{option} {text}")
        values[name] = parse_value(value, f"{option} {text}")
    return bind(function, values, Document(option, values), ())


def defaults(function: Callable, given: object = None) -> dict[str, Any]:
    """The options that may be left out, with what they are then."""
    return {option.name: option.default for option in options(function, given).values() if not option.required}


def _check(option: Option, value: Any, document: Document, at: At) -> Any:
    _refuse_strays(option.annotation, value, document, at)
    try:
        return TypeAdapter(option.annotation).validate_python(value, strict=True)
    except ValidationError:
        inner, annotation, wrong = _culprit(option.annotation, value)
        where = document.where((*at, *inner))
        raise _complaint(spell((option.name, *inner)), annotation, wrong).at(where) from None
    except PruneError as error:  # a validator of ours in the annotation
        raise error.at(document.where(at)) from None


def _refuse_strays(annotation: Any, value: Any, document: Document, at: At) -> None:
    """PruneError for a key, at any depth, that is none of the options that a mapping there may have."""
    for member in map(_bare, _members(annotation)):
        if is_typeddict(member) and isinstance(value, Mapping):
            known = get_type_hints(member)
            for name in value:
                if name not in known:
                    raise unknown("option", name, known).at(document.where((*at, name), key=True))
        inside = list(value) if isinstance(value, Mapping) else range(len(value)) if isinstance(value, list) else ()
        for key in inside:
            child = _child(member, value, key)
            if child is not None:
                _refuse_strays(*child, document, (*at, key))


def _culprit(annotation: Any, value: Any) -> tuple[At, Any, Any]:
    """The innermost value that does not fit: the way to it, what it should be, and the value."""
    members = _members(annotation)
    if len(members) > 1:
        inside = [found for member in members if (found := _culprit(member, value))[0]]
        return max(inside, key=lambda found: len(found[0]), default=((), annotation, value))
    try:
        TypeAdapter(annotation).validate_python(value, strict=True)
    except ValidationError as error:
        loc = tuple(part for part in error.errors()[0]["loc"] if isinstance(part, (int, str)))
        child = _child(annotation, value, loc[0]) if loc else None
        if child is not None:
            inner, deeper, wrong = _culprit(*child)
            return (loc[0], *inner), deeper, wrong
    return (), annotation, value


def _child(annotation: Any, value: Any, key: int | str) -> tuple[Any, Any] | None:
    """What an element of a list or mapping should be, and the element; None where the key is not one."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    origin, inside = get_origin(annotation), get_args(annotation)
    if isinstance(value, Mapping) and key in value:
        if is_typeddict(annotation):
            return get_type_hints(annotation, include_extras=True).get(str(key)), value[key]
        return (inside[1], value[key]) if origin is dict else None
    if isinstance(value, list) and isinstance(key, int) and origin in (list, set, tuple):
        return inside[0], value[key]
    return None


def _complaint(name: str, annotation: Any, value: Any) -> PruneError:
    choices = [
        choice for member in _members(annotation) if get_origin(member) is Literal for choice in get_args(member)
    ]
    if choices and isinstance(value, str):
        return unknown(name, value, map(str, choices))
    bounds = _bounds(annotation)
    if bounds and _fits_without_bounds(annotation, value):
        return PruneError(f"{name} must be {bounds}, not {show(value)}")
    return PruneError(f"{name} must be {describe(annotation)}, not {show(value)}")


def _fits_without_bounds(annotation: Any, value: Any) -> bool:
    bare = [_bare(member) for member in _members(annotation)]
    return any(type(value) is plain or (plain is float and type(value) is int) for plain in bare)


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _members(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, types.UnionType):
        return [inner for member in get_args(annotation) for inner in _members(member)]
    return [annotation]


def _bounds(annotation: Any) -> str:
    words = []
    for member in _members(annotation):
        constraints = FieldInfo.from_annotation(member).metadata if get_origin(member) is Annotated else []
        for constraint in constraints:
            if type(constraint) in _BOUNDS:
                attribute, text = _BOUNDS[type(constraint)]
                words.append(f"{text} {getattr(constraint, attribute)}")
    return " and ".join(words)


def describe(annotation: Any) -> str:
    """A type in plain words: `a number at least 0 and below 1`, `one of heads, channels or a list of ...`."""
    members = _members(annotation)
    if len(members) > 1:
        return _either(describe(member) for member in members)
    if get_origin(annotation) is Annotated:
        return f"{describe(_bare(annotation))} {_bounds(annotation)}".strip()
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(map(str, get_args(annotation)))
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    if get_origin(annotation) in (list, set, tuple) or annotation is list:
        inside = get_args(annotation)
        return f"a list, each {describe(inside[0])}" if inside else "a list"
    if is_typeddict(annotation):
        return "a mapping of " + ", ".join(get_type_hints(annotation))
    return "a mapping" if annotation is dict or get_origin(annotation) is dict else "anything"


def _either(words: Iterable[str]) -> str:
    return ", or ".join(dict.fromkeys(words))


def show(value: object) -> str:
    """A value as a recipe would spell it, cut where it is long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "a mapping"
    return "a list" if isinstance(value, list) else f"{value!r:.60}"
