"""An embedding that is the head too, in int8: one table with a scale for each token, for both of its uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from prune.model.tracing import rewrite

LEVELS = 63  # of seven bits, as the rest: see prune.exports.quantize


class Uses(NamedTuple):
    """What reads a table: nodes that take rows of it, and products with the whole of it, turned."""

    rows: list[Any]
    products: list[Any]


def to_int8(path: Path) -> list[str]:
    """Puts tables that are read both ways in int8, in the graph at `path`; gives the nodes to leave alone after that.

    Left to ONNX Runtime's quantiser, the head would be turned and quantised anew at each call. Rows are multiplied by
    their token's scale, logits by it and by that of the hidden state, whose range is found in each call.
    """
    from onnxscript import ir

    model, names = ir.load(path), list[str]()
    for table in list(model.graph.initializers.values()):
        if uses := _uses(table):
            names += _replaced(model.graph, table, uses)
    if names:
        rewrite(model, path)
    return names


def _uses(table: Any) -> Uses | None:
    """How a table is read, when it is by rows and whole."""
    readers = [use.node for use in table.uses()]
    rows = [node for node in readers if node.op_type == "Gather" and node.inputs[0] is table]
    turned = [node for node in readers if node.op_type == "Transpose"]
    products = [use.node for node in turned for use in node.outputs[0].uses() if use.idx == 1]
    known = len(rows) + len(turned) == len(readers) and all(node.op_type == "MatMul" for node in products)
    return Uses(rows, products) if rows and products and known else None


def _replaced(graph: Any, table: Any, uses: Uses) -> list[str]:
    from onnxscript import ir

    values = table.const_value.numpy()  # (tokens, width)
    scale = np.maximum(np.abs(values).max(1) / LEVELS, np.finfo(np.float32).tiny).astype(np.float32)
    ints = _stored(graph, f"{table.name}_quantized", np.rint(values / scale[:, None]).astype(np.int8))
    scales = _stored(graph, f"{table.name}_scale", scale)
    made: list[Any] = []

    def node(kind: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        name = f"{table.name}_int8_{len(made)}"
        found = ir.node(kind, inputs, attributes, num_outputs=outputs, name=name)
        for place, value in enumerate(found.outputs):
            value.name = f"{name}_{place}"
        made.append(found)
        return found.outputs if outputs > 1 else found.outputs[0]

    last = _stored(graph, f"{table.name}_last", np.array([-1], dtype=np.int64))
    turned = node("Transpose", ints, perm=[1, 0])
    for one in uses.rows:
        whole = node("Cast", node("Gather", ints, one.inputs[1]), to=ir.DataType.FLOAT)
        found = node("Mul", whole, node("Unsqueeze", node("Gather", scales, one.inputs[1]), last))
        _instead(one, found)
    for one in uses.products:
        hidden, range_, zero = node("DynamicQuantizeLinear", one.inputs[0], outputs=3)
        whole = node("Cast", node("MatMulInteger", hidden, turned, zero), to=ir.DataType.FLOAT)
        _instead(one, node("Mul", whole, node("Mul", range_, scales)))
    graph.extend(made)
    graph.remove([*uses.rows, *uses.products], safe=True)
    graph.remove([use.node for use in table.uses()], safe=True)
    graph.initializers.pop(table.name)
    graph.sort()
    return [one.name for one in made]


def _stored(graph: Any, name: str, array: np.ndarray) -> Any:
    from onnxscript import ir

    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
    graph.initializers[name] = value
    return value


def _instead(node: Any, value: Any) -> None:
    """A value in the place of a node's only output, of which it takes the name: graph outputs are known by theirs."""
    old = node.outputs[0]
    value.name, old.name = old.name, f"{old.name}_float"
    value.shape, value.type = old.shape, old.type
    old.replace_all_uses_with(value, replace_graph_outputs=True)
