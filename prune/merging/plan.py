"""A config and opened models become one job for each tensor of the merged model, before any of them is read."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import ModuleType
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from prune.errors import PruneError
from prune.merging import chance
from prune.merging.block import Parameter, keywords, parameters
from prune.merging.config import Config, Reference, Source
from prune.merging.methods import method
from prune.merging.places import Input, Models, Place, length_of, sliced, whole
from prune.merging.settings import chain, refuse_idle_filters, refuse_unknown, resolve
from prune.merging.stream import Job
from prune.merging.vocabulary import Alignment, with_rows
from prune.model import config as configs
from prune.model import skeleton
from prune.model.layout import stored_name
from prune.model.model import Model


@dataclass(frozen=True)
class Options:
    """How a merge computes: the seed of masks, whether as mergekit does, where."""

    seed: int = 0
    compat: bool = False
    device: str = "cpu"


@dataclass
class Plan:
    """What will be computed: `values` are each tensor's parameters, `special` the tokens' numbers that change."""

    jobs: dict[str, Job]
    places: dict[str, Place]
    values: dict[str, dict[str, Any]]
    donor: Model
    config: PreTrainedConfig
    architecture: type[PreTrainedModel]
    inputs: list[Reference]
    layers: int
    seed: int
    special: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def plan(config: Config, models: Models, options: Options, alignment: Alignment | None) -> Plan:
    """Every job of a merge. Raises PruneError, placed in the config, for whatever cannot be merged as it says."""
    warnings = refuse_unknown(config) + list(alignment.warnings if alignment else ())
    used = method(config.method)
    config = _with_base(config, used)
    _refuse_families(config, models)
    donor = _donor(config, models)
    tensors = list(whole(config, models, donor, used) if config.whole else sliced(config, models, donor, used))
    names = {stored_name(own.name, model.family.stored) for model in models.values() for own in tensors}
    names |= {stored_name(name, model.family.stored) for model in models.values() for name in model.tensors.info}
    refuse_idle_filters(config, names)
    taken = parameters(used)
    values = {own.name: _values(config, own, taken, models) for own in tensors}
    _refuse_values(config, used, tensors, values)
    out_config, architecture = _described(config, models, donor, alignment)
    jobs = {own.name: _job(config, own, values[own.name], models, options, alignment) for own in tensors}
    if not config.whole:
        _refuse_misfits(config, tensors, jobs, replace(donor, config=out_config, architecture=architecture))
    _set_dtype(out_config, jobs)
    _with_states(jobs, config, options)
    return Plan(
        jobs=jobs,
        places={own.name: own for own in tensors},
        values=values,
        donor=donor,
        config=out_config,
        architecture=architecture,
        inputs=config.references,
        layers=_depth(config, donor),
        seed=options.seed,
        special=dict(alignment.special) if alignment else {},
        warnings=warnings,
    )


def _with_base(config: Config, used: ModuleType) -> Config:
    """The config with the base among the models, where the method needs one and they leave it out."""
    if used.BASE == "needed" and config.base is None and not all(own.base for own in config.slices):
        raise PruneError(f"{config.method} needs a base_model", where=config.where())
    if used.BASE == "input" or config.base is None or not config.whole:
        return config
    (own,) = config.slices
    if any(source.model == config.base for source in own.sources):
        return config
    base = Source(config.base, None, {}, ("base_model",))
    return replace(config, slices=(replace(own, sources=(*own.sources, base)),))


def _refuse_families(config: Config, models: Models) -> None:
    first, *others = config.references
    for other in others:
        one, two = models[first].family.model_type, models[other].family.model_type
        if one != two:
            raise PruneError(
                f"{first} is a {one} and {other} a {two}; only models of one family merge",
                where=config.where(config.place(other)),
            )


def _donor(config: Config, models: Models) -> Model:
    """The model whose config, files and names the merged one has: the base, else the first."""
    return models[config.base or config.slices[0].sources[0].model]


def _depth(config: Config, donor: Model) -> int:
    if config.whole:
        return donor.numbers["layers"]
    return sum(length_of(own) for own in config.slices)


def _values(config: Config, own: Place, taken: Mapping[str, Parameter], models: Models) -> dict[str, Any]:
    """The method's parameters for one tensor: a list of values where each input has its own."""
    found: dict[str, Any] = {}
    for name, parameter in taken.items():
        try:
            if parameter.each:
                found[name] = [
                    resolve(parameter, chain(config, own.own, given.source), _stored(models, given), own.u)
                    for given in own.inputs
                ]
            else:
                shared = next(iter(models.values()))
                spelt = stored_name(own.name, shared.family.stored)
                found[name] = resolve(parameter, chain(config, own.own, None), spelt, own.u)
        except PruneError as error:
            raise PruneError(f"{error.where} {error.message}", where=config.where(("parameters",))) from None
        missing = (
            [given for given, value in zip(own.inputs, found[name], strict=True) if value is None]
            if parameter.each
            else []
        )
        if missing or found[name] is None:
            who = f" of {missing[0].source.model}" if missing else ""
            at = missing[0].source.at if missing else ("parameters",)
            raise PruneError(
                f"{config.method} needs the parameter {name}{who} for {own.name!r}", where=config.where(at)
            )
    return found


def _stored(models: Models, given: Input) -> str:
    return stored_name(given.name, models[given.source.model].family.stored)


def _refuse_values(
    config: Config, used: ModuleType, tensors: Sequence[Place], values: Mapping[str, dict[str, Any]]
) -> None:
    check: Callable[..., None] | None = getattr(used, "check", None)
    for own in tensors:
        try:
            if check and own.inputs:
                check(**keywords(values[own.name]))
        except PruneError as error:
            raise PruneError(
                f"{error.message} (for {own.name!r})", where=config.where((error.where or "parameters",))
            ) from None
    weights = [value["weight"] for value in values.values() if value.get("weight")]
    if weights and not any(any(own) for own in weights):
        raise PruneError("all weights are zero, so nothing would be merged", where=config.where())


def _job(
    config: Config,
    own: Place,
    values: Mapping[str, Any],
    models: Models,
    options: Options,
    alignment: Alignment | None,
) -> Job:
    everyone = [*own.inputs, *([own.base] if own.base else [])]
    aligned = alignment is not None and own.name in alignment.names
    for given in everyone:
        if given.name not in models[given.source.model].tensors.info:
            raise PruneError(
                f"{given.source.model} has no tensor {given.name!r}, which the others have",
                where=config.where(given.source.at),
            )
    infos = [models[given.source.model].tensors.info[given.name] for given in everyone]
    shapes = (
        [alignment.shape(info.shape) for info in infos] if aligned and alignment else [info.shape for info in infos]
    )
    for given, shape in zip(everyone, shapes, strict=True):
        if shape != shapes[0]:
            raise PruneError(
                f"{given.name!r} of {given.source.model} is of shape {list(shape)}, and {list(shapes[0])} in"
                f" {everyone[0].source.model}{_padded(models, given, shape, shapes[0])}",
                where=config.where(given.source.at),
            )
    common = infos[0].dtype
    for info in infos[1:]:
        common = torch.promote_types(common, info.dtype)
    inner = getattr(torch, config.dtype) if config.dtype else common
    out = getattr(torch, config.out_dtype) if config.out_dtype else inner
    floating = common.is_floating_point
    computed = inner if options.compat else torch.promote_types(common, torch.float32)

    def opener(given: Input) -> Callable[[], Any]:
        tensors = models[given.source.model].tensors
        if aligned and alignment:
            return partial(alignment.parts, given.source.model, given.name)
        return partial(tensors.parts, given.name)

    return Job(
        name=own.name,
        shape=tuple(shapes[0]),
        method=method(config.method) if own.inputs else _base_alone(),
        inputs=[opener(given) for given in own.inputs] or [opener(everyone[0])],
        base=opener(own.base) if own.base and own.inputs else None,
        values=values if own.inputs else {"scale": [1.0]},
        dtype=computed,
        out=out if floating else common,
        seed=options.seed,
        device=options.device,
        compat=options.compat,
    )


def _padded(models: Models, given: Input, shape: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """What to do about rows of tokens that differ in number alone."""
    if shape[1:] != wanted[1:] or given.name not in with_rows(models[given.source.model]):
        return ""
    return (
        "; where only the rows added to the vocabulary differ, tokenizer_source: base brings all to the same number,"
        " and tokenizer: {source: base, pad_to_multiple_of: ...} to a round one"
    )


def _refuse_misfits(config: Config, tensors: Sequence[Place], jobs: Mapping[str, Job], made: Model) -> None:
    """PruneError where the slices give other tensors than the merged model's module has."""
    root = skeleton.skeleton(made)
    wanted = {name: tuple(tensor.shape) for name, tensor in root.state_dict().items()}
    for own in tensors:
        given, needed = jobs[own.name].shape, wanted.get(own.name)
        if given != needed:
            instead = f"is of shape {list(needed)}" if needed else "is not there"
            raise PruneError(
                f"{own.name!r} would be of shape {list(given)}, and by the merged model's config it {instead}:"
                " the slices' models are not made alike",
                where=config.where(own.own.at),
            )
    lacking = [name for name in wanted if name not in jobs and name not in skeleton.tied(root)]
    if lacking:
        raise PruneError(
            f"no slice gives {lacking[0]!r}, which the merged model needs", where=config.where(("slices",))
        )


def _base_alone() -> ModuleType:
    """How a tensor is made where there is only the base."""
    return method("passthrough")


def _described(
    config: Config, models: Models, donor: Model, alignment: Alignment | None
) -> tuple[PreTrainedConfig, type[PreTrainedModel]]:
    """The config and class of the merged model."""
    if config.whole:
        described, architecture = copy.deepcopy(donor.config), donor.architecture
    else:
        layers: list[int] = []
        sizes: list[dict[str, int]] = []
        for own in config.slices:
            source = next((s for s in own.sources if models[s.model] is donor), own.sources[0])
            first, last = source.layers or (0, 0)
            layers += range(first, last)
            sizes += [models[source.model].sizes(layer) for layer in range(first, last)]
        deepest = (
            donor if max(layers) < donor.numbers["layers"] else max(models.values(), key=lambda m: m.numbers["layers"])
        )
        described, architecture = configs.shaped(deepest, layers, sizes)
    if alignment:
        described.vocab_size = alignment.size
        for name, number in alignment.special.items():
            setattr(described, name, number)
    return described, architecture


def _set_dtype(described: PreTrainedConfig, jobs: Mapping[str, Job]) -> None:
    floats = [job.out for job in jobs.values() if job.out.is_floating_point]
    if floats:
        described.dtype = floats[0]


def _with_states(jobs: dict[str, Job], config: Config, options: Options) -> None:
    """As mergekit draws: one generator through all tensors in the order of their names."""
    if not options.compat or not getattr(method(config.method), "DRAWS", False):
        return
    order = sorted(jobs)
    shapes = []
    for name in order:
        job = jobs[name]
        density = job.values.get("density", [])
        shapes.append((job.shape, sum(share < 1 for share in density) if job.out.is_floating_point else 0, job.dtype))
    for name, state in zip(order, chance.states(options.seed, shapes), strict=True):
        jobs[name] = replace(jobs[name], state=state)
