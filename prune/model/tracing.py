"""A module traced into an ONNX graph and written to disk, without a word of where it was made."""

from __future__ import annotations

import ast
import gc
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prune.errors import PruneError

DATA = "model.onnx_data"  # the name Optimum gives to weights that lie beside model.onnx
LARGEST = 2**31 - 2**27  # bytes of weights that still fit, with the graph around them, into protobuf's 2 GB
OPSET = 20
Dims = tuple[str | int, ...]  # a name for a size that may differ from call to call, a number for one that may not


@dataclass(frozen=True)
class Ports:
    """A module as a function of named tensors.

    `module` takes one mapping of the `inputs`, each with a sample to trace with: two sizes that are not tied together
    are not equal there, or tracing would take them for one. It gives a list as long as `outputs`. `dims` are the
    shapes of the inputs, and of outputs where they are known, in the words of deployment tools; a sum of names is a
    size that follows from others.
    """

    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: Sequence[str]
    dims: Mapping[str, Dims]


@dataclass(frozen=True)
class Graph:
    """A traced module as an onnx_ir model. `ends` names the value that each of the modules asked for gives."""

    model: Any
    ends: Mapping[str, str] = field(default_factory=dict)


def traced(ports: Ports, *, opset: int = OPSET, ends: Sequence[str] = ()) -> Graph:
    """Traces a module with torch's exporter. `ends` are paths of modules whose outputs are to be found in the graph.

    Raises PruneError when torch cannot trace it, or cannot write it in this opset.
    """
    names = list(ports.inputs)
    dims = [enumerate(ports.dims[name]) for name in names]
    shapes = [{place: _plain(dim) for place, dim in own if isinstance(dim, str)} for own in dims]
    with torch.no_grad(), quiet(), _fewer_pauses():
        try:
            program = torch.onnx.export(
                _Listed(ports.module, names),
                (list(ports.inputs.values()),),
                dynamo=True,
                dynamic_shapes=(shapes,),
                input_names=names,
                output_names=list(ports.outputs),
                opset_version=opset,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            cause = str(error.__cause__ or error).strip().splitlines()[0]
            raise PruneError(f"torch cannot trace it into an ONNX graph: {cause[:200]}", where="onnx") from error
    assert program is not None
    model: Any = program.model
    written = model.opset_imports[""]
    if written != opset:  # a version that torch cannot convert to is only warned of
        raise PruneError(f"torch writes this model with opset {written}, and cannot with {opset}", where="opset")
    found = _ends(model.graph, ends)
    return Graph(_anonymous(_shaped(model, ports.dims)), found)


class _Listed(nn.Module):
    """A function of named tensors as one of a list: the exporter would take a mapping for keyword arguments."""

    def __init__(self, module: nn.Module, names: list[str]):
        super().__init__()
        self.module, self.names = module, names

    def forward(self, values: list[Tensor]) -> Any:
        return self.module(dict(zip(self.names, values, strict=True)))


def _plain(dim: str) -> str:
    """A name to trace with: a sum of sizes gets one of its own, and its spelling back afterwards."""
    return "_".join(["total", *dim.split(" + ")]) if " + " in dim else dim


def _shaped(model: Any, dims: Mapping[str, Dims]) -> Any:
    """Sets the shapes of inputs and outputs in the words that deployment tools know."""
    from onnxscript import ir

    for value in chain(model.graph.inputs, model.graph.outputs):
        if value.name in dims:
            value.shape = ir.Shape(dims[value.name])
    return model


def _ends(graph: Any, paths: Sequence[str]) -> dict[str, str]:
    """Path of a module -> the value it gives: the last one made inside of it that nodes outside read."""
    from onnxscript import ir

    scopes = {node: ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]")) for node in graph}
    found = {}
    for path in paths:
        inside = {node for node in graph if any(scope.endswith(f".{path}") for scope in scopes[node])}
        for value in chain.from_iterable(node.outputs for node in graph if node in inside):
            outside = any(use.node not in inside for use in value.uses())
            if outside and value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
                found[path] = value.name
    return found


def _anonymous(model: Any) -> Any:
    """Takes away what the exporter notes down for its own debugging: stack traces, with paths of this machine."""
    graph = model.graph
    nodes = list(graph.all_nodes())
    values = chain(graph.inputs, graph.initializers.values(), chain.from_iterable(node.outputs for node in nodes))
    for thing in chain([model, graph], nodes, values):
        thing.metadata_props.clear()
        thing.doc_string = None
    return model


def write(model: Any, path: Path) -> None:
    """Writes an onnx_ir model; weights too large for one file go to model.onnx_data beside it."""
    from onnxscript import ir

    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    ir.save(model, path, external_data=DATA if weights > LARGEST else None)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the exporter's chatter from stdout, where results go, and its advice to developers from stderr."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "root")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def _fewer_pauses() -> Iterator[None]:
    """Tracing makes millions of small objects that live to its end; looking for garbage among them costs a tenth."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
