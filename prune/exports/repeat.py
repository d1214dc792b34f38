"""Surgery on a traced graph: the nodes of one layer, written once for each layer that is like it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from prune.model.tracing import Graph, Ports, shaped

CACHE = re.compile(r"(past_key_values|present)\.(\d+)\.(key|value)")
SIZES = ("Shape", "Size")  # what these say is the same of all layers of a kind, and may be read before them


@dataclass(frozen=True)
class Layer:
    """One layer of the whole model.

    `traced` is the path in the traced graph of the first of its kind, which is layer `place` there; `tensors` are its
    own parameters and buffers, by their names within a layer.
    """

    path: str
    index: int
    traced: str
    place: int
    first: bool
    tensors: Mapping[str, Tensor]


@dataclass
class Part:
    """The nodes of one traced layer, and the values by which it hangs together with the rest."""

    enters: Any
    leaves: Any
    weights: dict[str, Any]  # name in the graph -> value
    cache: dict[str, Any]  # the layer's keys and values, going in and coming out, by name
    nodes: list[Any] = field(default_factory=list)


def repeated(graph: Graph, layers: Sequence[Layer], ports: Ports, marks: Sequence[str]) -> Graph:
    """The graph of all `layers` from one in which the first of each kind was traced; it is changed.

    `ports` are those of the whole model. The outputs named by `marks` are what enters the first layer and what leaves
    each that was traced, and are outputs no more.
    """
    found = graph.model.graph
    enters, *leaves = _marked(found, marks)
    places = {layer.place: layer for layer in layers if layer.first}
    parts = [
        _part(found, places[place].traced, place, entry, leaf)
        for place, (entry, leaf) in enumerate(zip([enters, *leaves], leaves, strict=False))
    ]
    _renamed(found, parts, [places[place] for place in range(len(parts))])
    ends, current = {}, enters
    after = [use for use in leaves[-1].uses() if _computes(use.node)]
    for layer in layers:
        current = _placed(found, parts[layer.place], layer, current)
        ends[layer.path] = current.name
    for use in after:
        use.node.replace_input_with(use.idx, current)
    _in_order(found, ports)
    _fold_transposes(found)
    found.sort()
    return Graph(shaped(graph.model, ports.dims), ends, repeats=len(parts) < len(layers))


def nested(graph: Graph) -> bool:
    """Whether nodes hold graphs of their own, which are not copied here."""
    from onnxscript import ir

    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(one.type in kinds for node in graph.model.graph for one in node.attributes.values())


def _marked(found: Any, marks: Sequence[str]) -> list[Any]:
    """The values that outputs name, which are outputs no more."""
    named = {value.name: value for value in found.outputs}
    kept = [value for value in found.outputs if value.name not in marks]
    found.outputs.clear()
    found.outputs.extend(kept)
    return [_plain(named[name]) for name in marks]


def _plain(value: Any) -> Any:
    """The value itself, of one that was only named anew to be an output."""
    node = value.producer()
    return node.inputs[0] if node is not None and node.op_type == "Identity" and not value.uses() else value


def _part(found: Any, path: str, place: int, enters: Any, leaves: Any) -> Part:
    """A traced layer: what lies between its inputs, weights and cache, and its outputs."""
    weights = {name: value for name, value in found.initializers.items() if f".{path}." in f".{name}"}
    cached = [value for value in (*found.inputs, *found.outputs) if _cached(value.name) == place]
    going_in = [value for value in cached if value.name.startswith("past")]
    part = Part(enters, leaves, weights, {value.name: value for value in cached})
    behind = _reached([enters, *weights.values(), *going_in], lambda value: value.consumers(), _outputs)
    before = _reached(
        [leaves, *(value for value in cached if value not in going_in)],
        lambda value: [value.producer()] if value.producer() is not None else [],
        lambda node: [value for value in node.inputs if value is not None],
    )
    part.nodes = [node for node in found if node in behind and node in before]
    return part


def _reached(start: Iterable[Any], nodes: Callable[[Any], Any], values: Callable[[Any], Any]) -> set[Any]:
    """Nodes that are reached from values, one way or the other, without the sizes of anything."""
    open_, seen = list(start), set()
    while open_:
        for node in nodes(open_.pop()):
            if node not in seen and _computes(node):
                seen.add(node)
                open_ += values(node)
    return seen


def _outputs(node: Any) -> Any:
    return node.outputs


def _computes(node: Any) -> bool:
    return node.op_type not in SIZES


def _cached(name: str) -> int | None:
    found = CACHE.fullmatch(name)
    return int(found[2]) if found else None


def _renamed(found: Any, parts: Sequence[Part], layers: Sequence[Layer]) -> None:
    """What was traced gets the names of the layers that it is in the whole model."""
    for part, layer in zip(parts, layers, strict=True):
        for name in part.weights:
            found.initializers.pop(name)
        for name, value in part.cache.items():
            value.name = _moved(name, layer)
    for part, layer in zip(parts, layers, strict=True):
        for name, value in part.weights.items():
            value.name = _moved(name, layer)
            found.initializers[value.name] = value


def _moved(name: str, layer: Layer) -> str:
    """The name of a weight, a key or a value as it is of another layer of its kind."""
    if cached := CACHE.fullmatch(name):
        return f"{cached[1]}.{layer.index}.{cached[3]}"
    return f".{name}".replace(f".{layer.traced}.", f".{layer.path}.", 1)[1:]


def _placed(found: Any, part: Part, layer: Layer, current: Any) -> Any:
    """A layer behind `current`; gives what leaves it."""
    if layer.first:
        for node in part.nodes:
            for place, value in enumerate(node.inputs):
                if value is part.enters:
                    node.replace_input_with(place, current)
        part.enters = current
        return part.leaves
    return _copied(found, part, layer, current)


def _copied(found: Any, part: Part, layer: Layer, current: Any) -> Any:
    from onnxscript import ir

    stands = {part.enters: current} | {value: _weight(found, name, layer, part) for name, value in part.weights.items()}
    for name, value in part.cache.items():
        if value.producer() is None:
            stands[value] = ir.Value(name=_moved(name, layer), type=value.type, shape=value.shape)
            found.inputs.append(stands[value])
    outputs = {value: _moved(name, layer) for name, value in part.cache.items()}
    for node in part.nodes:
        for value in node.outputs:
            name = outputs.get(value, f"{value.name}.{layer.index}")
            stands[value] = ir.Value(name=name, type=value.type, shape=value.shape)
        found.append(
            ir.Node(
                node.domain,
                node.op_type,
                [stands.get(value, value) for value in node.inputs],
                list(node.attributes.values()),
                outputs=[stands[value] for value in node.outputs],
                name=f"{node.name}.{layer.index}",
            )
        )
    found.outputs.extend(stands[value] for value in outputs if value.producer() is not None)
    return stands[part.leaves]


def _weight(found: Any, name: str, layer: Layer, part: Part) -> Any:
    """A layer's own tensor in the place of the traced layer's."""
    from onnxscript import ir

    like, own = part.weights[name], _moved(name, layer)
    tensor = layer.tensors[f".{name}".split(f".{layer.traced}.", 1)[1]]
    value = ir.Value(name=own, type=like.type, shape=like.shape, const_value=ir.tensor(tensor.numpy(), name=own))
    found.initializers[own] = value
    return value


def _in_order(found: Any, ports: Ports) -> None:
    """Inputs and outputs in the order of the ports."""
    for held, names in ((found.inputs, ports.inputs), (found.outputs, ports.outputs)):
        named = {value.name: value for value in held}
        held.clear()
        held.extend(named[name] for name in names)


def _fold_transposes(found: Any) -> None:
    """Weights that are turned at each run lie turned instead, where nothing else reads them."""
    from onnxscript import ir

    for node in [node for node in found if node.op_type == "Transpose"]:
        weight, turned = node.inputs[0], node.outputs[0]
        if weight.name in found.initializers and len(weight.uses()) == 1 and not turned.is_graph_output():
            array = weight.const_value.numpy().transpose(node.attributes["perm"].as_ints())
            weight.const_value = ir.tensor(np.ascontiguousarray(array), name=weight.name)
            weight.shape = ir.Shape(array.shape)
            turned.replace_all_uses_with(weight)
            found.remove(node, safe=True)
