"""The keyword options of a function, and values for them checked against its signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from prune.errors import PruneError, unknown


def options_of(function: Callable) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of a function, by name, with their annotations resolved."""
    hints = get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.replace(annotation=hints[p.name]) for p in parameters if p.kind is p.KEYWORD_ONLY}


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
