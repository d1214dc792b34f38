"""Which tensors a merged model has, and from which tensors of its inputs each of them comes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

from prune.errors import PruneError
from prune.merging.config import Config, Reference, Slice, Source
from prune.model import config as configs
from prune.model import skeleton
from prune.model.model import Model

Models = Mapping[Reference, Model]


@dataclass(frozen=True)
class Input:
    """One input of one tensor: whose, and its name there."""

    source: Source
    name: str


@dataclass(frozen=True)
class Place:
    """One tensor of the merged model: its inputs, its base, its slice, and where in the slice it is (0 to 1)."""

    name: str
    own: Slice
    inputs: tuple[Input, ...]
    base: Input | None
    u: float


def length_of(own: Slice) -> int:
    """How many layers a slice gives."""
    first, last = own.sources[0].layers or (0, 0)
    return last - first


def whole(config: Config, models: Models, donor: Model, used: ModuleType) -> Iterator[Place]:
    """Every tensor from the tensors of the same name."""
    (own,) = config.slices
    _refuse_count(config, own, used)
    for reference in config.references:
        other, depth = models[reference].numbers["layers"], donor.numbers["layers"]
        if other != depth:
            raise PruneError(
                f"{reference} has {other} layers and the others {depth}; name slices",
                where=config.where(config.place(reference)),
            )
    for source in own.sources:
        _refuse_more(config, source, models[source.model].tensors.info, donor.tensors.info)
    positions = {}
    for stack in configs.stacks(donor):
        for place, layer in enumerate(stack):
            positions.update(dict.fromkeys(donor.names(layer), place / (len(stack) - 1) if len(stack) > 1 else 1.0))
    for name in donor.tensors.info:
        yield _tensor(config, own, name, [name] * len(own.sources), positions.get(name, 0.0), used)


def sliced(config: Config, models: Models, donor: Model, used: ModuleType) -> Iterator[Place]:
    """Layers slice by slice; what comes before them from the first slice's models, what comes after from the last's."""
    if donor.family.encoder:
        raise PruneError(
            "slices of a model with an encoder and a decoder are not merged; name models", where=config.where()
        )
    for own in config.slices:
        _refuse_count(config, own, used)
        _refuse_ranges(config, own, models)
    inside = _inside(donor)
    before, after = _around(donor, inside)
    for own, end, names in ((config.slices[0], 0, before), (config.slices[-1], 1, after)):
        for source in own.sources:
            _refuse_more(config, source, _around(models[source.model], _inside(models[source.model]))[end], names)
    for name in before:
        first = config.slices[0]
        yield _tensor(config, first, name, [name] * len(first.sources), 0.0, used)
    place = 0
    for own in config.slices:
        length = length_of(own)
        for step in range(length):
            yield from _layer(
                config, own, models, step, donor.family.layer(place), step / (length - 1) if length > 1 else 1.0, used
            )
            place += 1
    for name in after:
        last = config.slices[-1]
        yield _tensor(config, last, name, [name] * len(last.sources), 0.0, used)


def _layer(
    config: Config, own: Slice, models: Models, step: int, path: str, u: float, used: ModuleType
) -> Iterator[Place]:
    olds = [models[source.model].layer((source.layers or (0, 0))[0] + step) for source in own.sources]
    leaves = [
        [name.removeprefix(old) for name in models[source.model].tensors.info if name.startswith(f"{old}.")]
        for source, old in zip(own.sources, olds, strict=True)
    ]
    for source, old, leaf in zip(own.sources, olds, leaves, strict=True):
        _refuse_more(config, source, [old + name for name in leaf], [old + name for name in leaves[0]])
    for name in leaves[0]:
        yield _tensor(config, own, path + name, [old + name for old in olds], u, used)


def _refuse_more(config: Config, source: Source, names: Iterable[str], wanted: Iterable[str]) -> None:
    """PruneError for tensors of an input that the merged model has no place for."""
    known = set(wanted)
    extra = [name for name in names if name not in known]
    if extra:
        more = f" (and {len(extra) - 1} more)" if len(extra) > 1 else ""
        raise PruneError(
            f"{source.model} has the tensor {extra[0]!r}{more}, which others have not, so it would be lost",
            where=config.where((*source.at, "model")),
        )


def _inside(model: Model) -> set[str]:
    return {name for layer in range(model.numbers["layers"]) for name in model.names(layer)}


def _around(donor: Model, inside: set[str]) -> tuple[list[str], list[str]]:
    """The tensors that come before the layers and those that come after them, in the module's order."""
    ordered = [name for name in skeleton.skeleton(donor).state_dict() if name in donor.tensors.info]
    first = next(place for place, name in enumerate(ordered) if name in inside)
    before = [name for name in ordered[:first] if name not in inside]
    return before, [name for name in ordered[first:] if name not in inside]


def _refuse_count(config: Config, own: Slice, used: ModuleType) -> None:
    base = own.base or config.base
    count = len(own.sources)
    if used.BASE != "input" and base is not None:
        if not any(source.model == base for source in own.sources):
            raise PruneError(f"the slice has no layers of the base model {base}", where=config.where(own.at))
        count -= 1
    if count < used.LEAST or (used.MOST is not None and count > used.MOST):
        bound = f"exactly {used.LEAST}" if used.MOST == used.LEAST else f"at least {used.LEAST}"
        beside = "" if used.BASE == "input" or base is None else " beside the base"
        raise PruneError(f"{config.method} takes {bound} model(s){beside}, not {count}", where=config.where(own.at))


def _refuse_ranges(config: Config, own: Slice, models: Models) -> None:
    for source in own.sources:
        if source.layers is None:
            raise PruneError("layer_range is missing", where=config.where(source.at))
        count = models[source.model].numbers["layers"]
        if source.layers[1] > count:
            where = config.where((*source.at, "layer_range"))
            raise PruneError(
                f"layer_range {[*source.layers]} goes beyond the {count} layers of {source.model}", where=where
            )
    lengths = {source.layers[1] - source.layers[0] for source in own.sources if source.layers}
    if len(lengths) > 1:
        raise PruneError(
            f"the sources of a slice must have equally many layers, not {sorted(lengths)}", where=config.where(own.at)
        )


def _tensor(config: Config, own: Slice, name: str, names: Sequence[str], u: float, used: ModuleType) -> Place:
    """The base is the first source of the base model; any other of it is an input like the others."""
    inputs = [Input(source, given) for source, given in zip(own.sources, names, strict=True)]
    base = None
    wanted = own.base or config.base
    if used.BASE != "input" and wanted is not None:
        base = next(found for found in inputs if found.source.model == wanted)
        inputs = [found for found in inputs if found is not base]
    return Place(name, own, tuple(inputs), base, u)
