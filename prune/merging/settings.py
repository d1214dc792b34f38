"""What a parameter is for one tensor: filters, gradients over the layers, and which of several settings counts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prune.document import At
from prune.errors import PruneError, unknown
from prune.merging.block import Parameter, parameters
from prune.merging.config import Config, Settings, Slice, Source
from prune.merging.methods import method, names


def resolve(parameter: Parameter, settings: Iterable[Settings], name: str, u: float) -> Any:
    """The value for the tensor `name` at position `u` (0 to 1) of its slice; None where no setting has one.

    The first of `settings` that says something counts. Raises PruneError for a value of the wrong kind.
    """
    for scope in settings:
        if parameter.name in scope:
            value = _value(parameter, scope[parameter.name], name, u)
            if value is not None:
                return value
    return parameter.default


def _value(parameter: Parameter, setting: Any, name: str, u: float) -> Any:
    if isinstance(setting, Mapping):
        setting = [setting]
    if not isinstance(setting, list):
        return _scalar(parameter, setting)
    if isinstance(setting[0], Mapping):
        for case in setting:
            wanted = case.get("filter")
            if wanted in (None, "*") or wanted in name:
                return _value(parameter, case["value"], name, u)
        return None
    values = [_scalar(parameter, entry) for entry in setting]
    if parameter.kind is bool:
        return values[int(u * (len(values) - 1))]
    place = u * (len(values) - 1)
    low = int(place)
    high, share = min(low + 1, len(values) - 1), place - low
    return _scalar(parameter, (1 - share) * values[low] + share * values[high])


def _scalar(parameter: Parameter, value: Any) -> Any:
    try:
        return parameter.value(value)
    except ValueError as error:
        raise PruneError(f"must be {error}, not {value!r}", where=parameter.name) from None


Scope = tuple[Settings, At, Source | None]  # settings, where they stand, and whose they are


def scopes(config: Config) -> Iterator[Scope]:
    """Every mapping of settings that a config has."""
    yield config.settings, ("parameters",), None
    if config.module:
        yield config.module, ("modules",), None
    for own in config.slices:
        if own.settings:
            yield own.settings, (*own.at, "parameters"), None
        for source in own.sources:
            yield source.settings, (*source.at, "parameters"), source


def refuse_unknown(config: Config) -> list[str]:
    """PruneError for parameters that no method takes; a line for each that does nothing where it stands."""
    taken = parameters(method(config.method))
    anywhere = {name for other in names() for name in parameters(method(other))}
    idle = []
    for settings, at, source in scopes(config):
        for name in settings:
            where = config.where((*at, name), key=True)
            if name not in anywhere:
                raise unknown(f"parameter of {config.method}", name, taken).at(where)
            if name not in taken:
                idle.append(f"{where}: {config.method} has no parameter {name}, so it does nothing")
            elif source and not taken[name].each:
                idle.append(
                    f"{where}: {name} is the same for all models, so it does nothing here: put it under parameters"
                )
            elif source and source.model == config.base and method(config.method).BASE != "input":
                idle.append(f"{where}: the base model has no {name}, so it does nothing")
    return idle


def refuse_idle_filters(config: Config, tensors: Iterable[str]) -> None:
    """PruneError for a filter that is in no tensor's name."""
    known = list(tensors)
    for settings, at, _ in scopes(config):
        for name, setting in settings.items():
            for place, case in enumerate(
                [setting] if isinstance(setting, Mapping) else setting if isinstance(setting, list) else ()
            ):
                wanted = case.get("filter") if isinstance(case, Mapping) else None
                if wanted not in (None, "*") and not any(wanted in tensor for tensor in known):
                    modules = sorted({part for tensor in known for part in tensor.split(".") if not part.isdigit()})
                    error = unknown("filter", wanted, modules)
                    raise PruneError(
                        f"{error.message.replace('unknown filter', 'no tensor has in its name the filter')}",
                        where=config.where((*at, name, place) if isinstance(setting, list) else (*at, name)),
                    )


def chain(config: Config, own: Slice, source: Source | None) -> list[Settings]:
    """Settings from the one that counts most to the one that counts least: source, slice, module, everything."""
    return [*([source.settings] if source else []), own.settings, config.module, config.settings]
