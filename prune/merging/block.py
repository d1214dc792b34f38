"""What a method is handed: a block of entries of each input, and what its parameters are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from types import ModuleType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from torch import Tensor

EACH = "one value for each input"
Each = Annotated[Sequence[float], EACH]  # of a method's parameter that each input has a value of its own of
Draw = Callable[[int, "float | Tensor", Tensor], Tensor]


@dataclass(frozen=True)
class Block:
    """The same entries of every input of one tensor, in the type that is computed in.

    tensors: of each input besides the base, in the config's order.
    base: of the base model, where the method has one.
    draw: `draw(input, probability, like)` gives a mask of ones and zeros shaped as `like`, one where an entry is
        kept; the same one whenever it is asked for this block.
    """

    tensors: Sequence[Tensor]
    base: Tensor | None
    draw: Draw

    @cached_property
    def deltas(self) -> list[Tensor]:
        """What each input adds to the base, worked out once: not to be changed in place."""
        assert self.base is not None
        return [tensor - self.base for tensor in self.tensors]


@dataclass(frozen=True)
class Parameter:
    """A parameter of a method: what kind of value it takes, whether each input has its own, and its default."""

    name: str
    kind: type  # float, int or bool
    each: bool
    default: Any  # None where a value is needed

    def value(self, given: Any) -> float | int | bool:
        """A value from a config as this parameter takes it. Raises ValueError."""
        if self.kind is bool:
            return truth(given)
        if isinstance(given, bool):
            raise ValueError("a number")
        try:
            number = float(given)
        except (TypeError, ValueError, OverflowError):
            raise ValueError("a number") from None
        if not isfinite(number):
            raise ValueError("a finite number")
        if self.kind is int and number != int(number):
            raise ValueError("a whole number")
        return self.kind(number)


def truth(given: Any) -> bool:
    """True or false, by any of the words that YAML has had for them. Raises ValueError."""
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    spelt = words.get(str(given).lower(), given)
    if spelt not in (True, False):
        raise ValueError("true or false")
    return bool(spelt)


def parameters(method: ModuleType) -> dict[str, Parameter]:
    """The parameters of a method, from the signature of its `merge`; `lambda_` is spelt without the stroke."""
    hints = get_type_hints(method.merge, include_extras=True)
    found = {}
    for parameter in inspect.signature(method.merge).parameters.values():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        hint, needed = hints[parameter.name], parameter.default is inspect.Parameter.empty
        each = get_origin(hint) is Annotated and EACH in get_args(hint)
        default = None if needed else parameter.default[0] if each else parameter.default
        name = parameter.name.removesuffix("_")
        found[name] = Parameter(name, float if each else hint, each, default)
    return found


def keywords(values: dict[str, Any]) -> dict[str, Any]:
    """Values by parameter as keyword arguments: `lambda` is a word of Python's."""
    return {"lambda_" if name == "lambda" else name: value for name, value in values.items()}
