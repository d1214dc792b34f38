"""A module traced into an ONNX graph and written to disk, without a word of where it was made."""

from __future__ import annotations

import gc
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
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
    """A traced module as an onnx_ir model.

    `ends` names the value that each layer gives, where there are layers; `repeats` says whether one of them was traced
    for several.
    """

    model: Any
    ends: Mapping[str, str] = field(default_factory=dict)
    repeats: bool = False


def traced(ports: Ports, *, opset: int = OPSET, free: str | None = None) -> Graph:
    """Traces a module with torch's exporter.

    Weights of the submodule at the path `free` keep their names and values, whatever can be computed from them. Raises
    PruneError when torch cannot trace it, or cannot write it in this opset.
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
                optimize=False,
                verbose=False,
            )
            assert program is not None
            with _free(program.model.graph, free):
                program.optimize()
        except torch.onnx.errors.OnnxExporterError as error:
            cause = str(error.__cause__ or error).strip().splitlines()[0]
            raise PruneError(f"torch cannot trace it into an ONNX graph: {cause[:200]}", where="onnx") from error
    model: Any = program.model
    written = model.opset_imports[""]
    if written != opset:  # a version that torch cannot convert to is only warned of
        raise PruneError(f"torch writes this model with opset {written}, and cannot with {opset}", where="opset")
    return Graph(_anonymous(shaped(model, ports.dims)))


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


def shaped(model: Any, dims: Mapping[str, Dims]) -> Any:
    """Sets the shapes of inputs and outputs in the words that deployment tools know."""
    from onnxscript import ir

    for value in chain(model.graph.inputs, model.graph.outputs):
        if value.name in dims:
            value.shape = ir.Shape(dims[value.name])
    return model


@contextmanager
def _free(graph: Any, path: str | None) -> Iterator[None]:
    """The weights of a submodule as inputs of the graph, of which nothing is known."""
    names = [name for name in graph.initializers if path is not None and f".{path}." in f".{name}"]
    values = {name: graph.initializers.pop(name) for name in names}
    held = {name: value.const_value for name, value in values.items()}
    for value in values.values():
        value.const_value = None
        graph.inputs.append(value)
    yield
    for name, value in values.items():
        graph.inputs.remove(value)
        value.name, value.const_value = name, held[name]
        graph.initializers[name] = value


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


def rewrite(model: Any, path: Path) -> None:
    """Writes a model that was read from disk, maybe from this very path, in the place of what is there."""
    from onnxscript import ir

    for value in model.graph.initializers.values():  # off the disk before the files change
        value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)
    for old in path.parent.glob(f"{path.name}*"):
        old.unlink()
    write(model, path)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the exporter's chatter off the terminal: advice to its developers, and graphs of what it cannot trace."""
    names = ("torch.onnx", "torch.fx.experimental.symbolic_shapes", "onnxscript", "onnx_ir", "root")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
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
