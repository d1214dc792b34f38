"""A table that is embedding and head is stored once in int8, and multiplied in integers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnxscript import ir

from prune.exports import quantize, tied
from prune.model import tracing

TOKENS, WIDTH = 300, 64


@pytest.fixture
def table() -> np.ndarray:
    """Rows of very different sizes."""
    draw = np.random.default_rng(0)
    return (draw.normal(size=(TOKENS, WIDTH)) * 10.0 ** draw.uniform(-2, 1, (TOKENS, 1))).astype(np.float32)


def written(table: np.ndarray, path: Path) -> None:
    """A graph that reads rows of the table and multiplies them with all of it."""
    ids = ir.Value(name="ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["n"]))
    weight = ir.Value(name="table", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(table.shape))
    weight.const_value = ir.tensor(table, name="table")
    rows = ir.node("Gather", [weight, ids], name="rows")
    turned = ir.node("Transpose", [weight], {"perm": [1, 0]}, name="turned")
    product = ir.node("MatMul", [rows.outputs[0], turned.outputs[0]], name="product")
    for node in (rows, turned, product):
        node.outputs[0].name = f"{node.name}_out"
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    product.outputs[0].name = "logits"
    product.outputs[0].shape = ir.Shape(["n", TOKENS])
    graph = ir.Graph(
        [ids],
        [product.outputs[0]],
        nodes=[rows, turned, product],
        initializers=[weight],
        opset_imports={"": 20},
        name="both",
    )
    tracing.write(ir.Model(graph, ir_version=10), path)


def run(path: Path, ids: np.ndarray) -> np.ndarray:
    """Logits (ids, tokens), one token at a time: the range of what is multiplied is that of a call."""
    session = onnxruntime.InferenceSession(str(path))
    return np.concatenate([session.run(["logits"], {"ids": ids[place : place + 1]})[0] for place in range(len(ids))])


def test_the_table_is_stored_once_and_both_uses_are_close(table: np.ndarray, tmp_path: Path) -> None:
    path, ids = tmp_path / "model.onnx", np.arange(0, TOKENS, 7)
    written(table, path)
    exact = run(path, ids)
    quantize.to_int8(path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    loaded = ir.load(path).graph
    kinds = Counter(node.op_type for node in loaded)
    assert kinds["MatMulInteger"] == kinds["DynamicQuantizeLinear"] == 1 and not kinds["MatMul"]
    sizes = {value.name: value.const_value.nbytes for value in loaded.initializers.values()}
    assert sum(sizes.values()) < TOKENS * WIDTH + 4 * TOKENS + 64
    length = np.linalg.norm(table, axis=1)
    assert (np.abs(run(path, ids) - exact) < 0.03 * length[ids][:, None] * length).all()  # small rows too


def test_a_table_that_is_read_by_rows_alone_is_left_to_the_quantiser(table: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    written(table, path)
    model = ir.load(path)
    _, turned, product = model.graph
    product.replace_input_with(1, ir.Value(name="other"))
    model.graph.remove(turned)
    assert tied._uses(model.graph.initializers["table"]) is None
