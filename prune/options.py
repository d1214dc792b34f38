"""The keyword options of a function, and values for them checked against its signature."""

from __future__ import annotations

import inspect
import keyword
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from prune.errors import PruneError, unknown


def spelt(parameter: str) -> str:
    """The name of an option: that of its parameter, without the `_` that tells it from a word of Python's (`as_`)."""
    return parameter.removesuffix("_")


def arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options under the names of their parameters."""
    return {f"{name}_" if keyword.iskeyword(name) else name: value for name, value in options.items()}


def options_of(function: Callable) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of a function, by the names of their options, with their annotations resolved."""
    hints = get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters.values()
    return {spelt(p.name): p.replace(annotation=hints[p.name]) for p in parameters if p.kind is p.KEYWORD_ONLY}


def check_options(function: Callable, given: Mapping[str, Any], *, of: str) -> None:
    """PruneError for an option that the function has not, that does not fit, or that is needed and missing.

    `of` says whose options they are: "criterion wanda".
    """
    known = options_of(function)
    for name, value in given.items():
        if name not in known:
            raise unknown(f"option of {of}", name, known)
        try:
            TypeAdapter(known[name].annotation).validate_python(value, strict=True)
        except ValidationError as error:
            raise PruneError(f"option {name!r} of {of}: {error.errors()[0]['msg']}, not {value!r}") from None
    for name, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and name not in given:
            raise PruneError(f"option {name!r} of {of} is missing")
