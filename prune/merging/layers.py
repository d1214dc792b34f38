"""Layers stacked anew: a model made of some of another's layers, in any order, some of them more than once.

Depth up-scaling (SOLAR): https://arxiv.org/abs/2312.15166. Block expansion (LLaMA Pro):
https://arxiv.org/abs/2401.02415.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from prune.errors import PruneError
from prune.model import config as configs
from prune.model.model import Model
from prune.model.tensors import Edit, edited


def upscale(
    model: Model,
    *,
    drop: int | None = None,
    layers: Sequence[tuple[int, int]] | None = None,
    expand: int | None = None,
) -> Model:
    """A deeper model, as a lazy view: nothing is read yet, the input is unchanged. One of three ways:

    drop: two copies stacked, the first without its last `drop` layers, the second without its first: 2 x (n - drop).
    layers: these ranges of layers, [first, one past the last), stacked.
    expand: after every `expand` layers a copy of the last one that adds nothing, so that no logit changes.

    An encoder and a decoder are both up-scaled. The embeddings, last norm and head stand once. Raises PruneError.
    """
    given = {
        name: value for name, value in (("drop", drop), ("layers", layers), ("expand", expand)) if value is not None
    }
    if len(given) != 1:
        raise PruneError(f"give one of drop, layers and expand, not {', '.join(given) or 'none of them'}")
    if layers is not None:
        return stack(model, [layer for first, last in layers for layer in _range(model, first, last)])
    chosen: list[int] = []
    silent: set[int] = set()
    for own in configs.stacks(model):
        if drop is not None:
            if not 0 <= drop < len(own):
                raise PruneError(
                    f"drop is {drop}, and there are {len(own)} layers: 0 to {len(own) - 1} may go", where="drop"
                )
            chosen += [*own[: len(own) - drop], *own[drop:]]
            continue
        assert expand is not None
        if not 1 <= expand <= len(own):
            raise PruneError(f"expand is every {expand}, and there are {len(own)} layers", where="expand")
        for place, layer in enumerate(own, 1):
            chosen.append(layer)
            if place % expand == 0:
                silent.add(len(chosen))
                chosen.append(layer)
    return stack(model, chosen, silent)


def _range(model: Model, first: int, last: int) -> range:
    count = model.numbers["layers"]
    if not 0 <= first < last <= count:
        raise PruneError(f"layers [{first}, {last}) are not among the {count} there are", where="layers")
    return range(first, last)


def stack(model: Model, layers: Sequence[int], silent: Collection[int] = ()) -> Model:
    """The model whose layers are these of `model`; those at the places `silent` add nothing to what goes through.

    Config lists with an entry for each layer are stacked alike. Raises PruneError where a layer is bound to its number
    and, for silent layers, where a layer's output is normed after it is added.
    """
    family = model.family
    if any(getattr(model.config, switch, False) for switch in family.numbered):
        raise PruneError(f"layers cannot be stacked: {', '.join(family.numbered)} ties each to its number")
    normed = any(getattr(model.config, key, None) == value for key, value in family.normed_after.items())
    if silent and (normed or not family.residual):
        raise PruneError(
            f"the layers of {family.model_type} norm what they add to, so none can be without effect; stack them with"
            " drop or layers",
            where="expand",
        )
    config, architecture = configs.shaped(model, layers, [model.sizes(layer) for layer in layers])
    edits = dict(_edits(model, layers, silent))
    return replace(model, config=config, architecture=architecture, tensors=edited(model.tensors, edits))


def _edits(model: Model, layers: Sequence[int], silent: Collection[int]) -> Iterator[tuple[str, Edit]]:
    inside = {name for layer in range(model.numbers["layers"]) for name in model.names(layer)}
    for name in model.tensors.info:
        if name not in inside:
            yield name, Edit(name, {})
    firsts = {
        next(place for place, layer in enumerate(layers) if layer in own): own[0] for own in configs.stacks(model)
    }
    for place, (layer, path) in enumerate(zip(layers, configs.paths(model, layers), strict=True)):
        last = outputs(model) if place in silent else frozenset()
        for name in model.names(layer):
            leaf = name.removeprefix(f"{model.layer(layer)}.")
            if leaf not in model.family.leading:
                yield f"{path}.{leaf}", Edit(name, {}, 0.0 if leaf in last else 1.0)
        for leaf in model.family.leading if place in firsts else ():
            yield f"{path}.{leaf}", Edit(f"{model.layer(firsts[place])}.{leaf}", {})


def outputs(model: Model) -> frozenset[str]:
    """The tensors, named within a layer, whose products the layer adds to what goes through it."""
    family = model.family
    consumers = {part.tensor for kind in family.parts.values() for part in kind if part.role == "consumer"}
    linears = {name.removesuffix(".weight") for name in {*consumers, *family.adds}}
    return frozenset(linears | {f"{linear}.{leaf}" for linear in linears for leaf in ("weight", "bias")})
