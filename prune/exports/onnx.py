"""A causal language model as one ONNX graph with key-value cache, under the names that Optimum gives them."""

from __future__ import annotations

import copy
import gc
import inspect
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from prune import files
from prune.errors import PruneError
from prune.exports import parity
from prune.exports.job import Job
from prune.model.caching import cache_argument
from prune.model.graph import positions
from prune.model.model import Model
from prune.model.save import load
from prune.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH, NEW, PAST = "batch_size", "sequence_length", "past_sequence_length"
TOTAL = f"{PAST} + {NEW}"
LARGEST = 2**31 - 2**27  # bytes of weights that still fit, with the graph around them, into protobuf's 2 GB

Layers = dict[int, tuple[tuple[int, int], tuple[int, int]]]  # layer -> (heads, width) of its keys and of its values


def export(
    job: Job,
    *,
    opset: Annotated[int, Field(ge=18)] = 20,
    tolerance: Annotated[float, Field(gt=0)] = 1e-4,
) -> dict[str, Any]:
    """One graph with key-value cache under Optimum's names, run in ONNX Runtime and compared with PyTorch.

    opset: of the ONNX operators.
    tolerance: the largest difference of logits from PyTorch's allowed, as a share of the largest logit.
    """
    module = load(job.model, dtype=torch.float32)
    tokenizer = job.model.tokenizer() if any(name.startswith("tokenizer") for name in job.model.files) else None
    return save(module, tokenizer, job.folder, opset=opset, tolerance=tolerance, progress=job.progress)


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: Path,
    *,
    opset: int = 20,
    tolerance: float = 1e-4,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a module's model.onnx in float32, with config and tokenizer beside it, to `folder`, whole or not at all.

    One graph serves prefill (past length 0) and decoding. Inputs: input_ids, attention_mask, position_ids (batch, new)
    (the mask: batch, past + new), past_key_values.{i}.key and .value (batch, heads, past, width); outputs: logits
    (batch, new, vocabulary), present.{i}.key and .value. Weights past 2 GB go to model.onnx_data. `model` is not
    changed. Gives a record: opset, names and bytes of the files, parity figures. Raises PruneError when the
    architecture cannot be carried, the results differ, or `folder` is occupied.
    """
    if reason := _refusal(type(model), model.config):
        raise PruneError(reason, where="onnx")
    track = (progress or Progress(quiet=True)).track("export onnx", 1 + parity.rounds(model))
    with files.staged(folder) as staging, track as advance, _quiet():
        ours = _float_copy(model)
        _save_graph(_graph(ours, opset), staging)
        advance()
        _save_companions(ours, tokenizer, staging)
        found = parity.compare(staging / "model.onnx", ours, tolerance=tolerance, advance=advance)
        sizes = {name: (staging / name).stat().st_size for name in files.names(staging)}
    notes = found.pop("notes")
    return {"format": "onnx", "opset": opset, "files": sizes, "parity": found, **({"notes": notes} if notes else {})}


def check(model: Model, **_: Any) -> str | None:
    """Why a model cannot be carried, or None when it can; reads no weights."""
    return _refusal(model.architecture, model.config)


def _refusal(architecture: type[PreTrainedModel], config: PreTrainedConfig) -> str | None:
    name, taken = architecture.__name__, inspect.signature(architecture.forward).parameters
    if not {"input_ids", "attention_mask"} <= set(taken) or cache_argument(architecture) not in taken:
        return f"onnx carries models with a key-value cache, and {name}'s forward takes none"
    if config.is_encoder_decoder:
        return f"onnx carries decoders alone, and {name} is an encoder with a decoder"
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or ())
    other = sorted(kind for kind in kinds if not kind.endswith("attention") or kind.startswith("linear"))
    if other or getattr(architecture, "_is_stateful", False):
        return f"onnx carries keys and values only, and {name} keeps another state ({', '.join(other) or 'recurrent'})"
    return None


def _float_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The model in float32 on the CPU, in eval mode; weights that are so already are shared, not copied."""
    shared: dict[int, Any] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        kind = torch.float32 if tensor.is_floating_point() else tensor.dtype
        moved = tensor.detach().to("cpu", kind)
        if moved.data_ptr() == tensor.data_ptr():
            moved = tensor
        elif isinstance(tensor, nn.Parameter):
            moved = nn.Parameter(moved, requires_grad=False)
        shared[id(tensor)] = moved
    ours = copy.deepcopy(model, shared).eval()
    ours.config.dtype = torch.float32
    return ours


class _Flat(nn.Module):
    """The model as a function of plain tensors; the cache is made and taken apart inside."""

    def __init__(self, model: PreTrainedModel, layers: Layers):
        super().__init__()
        self.model = model
        self.layers = list(layers)

    def forward(self, tokens: dict[str, Tensor], past: list[Tensor]) -> list[Tensor]:
        pairs = dict(zip(self.layers, zip(past[::2], past[1::2], strict=True), strict=True))
        # A layer without attention holds nothing, but has its place in the cache.
        cache = DynamicCache([pairs.get(layer, (None, None)) for layer in range(max(self.layers) + 1)])
        output = self.model(**tokens, **{cache_argument(self.model): cache}, use_cache=True)
        present: Any = [cache.layers[layer] for layer in self.layers]
        return [output.logits, *chain.from_iterable((layer.keys, layer.values) for layer in present)]


@torch.no_grad()
def _cached_layers(model: PreTrainedModel) -> Layers:
    """Which layers keep keys and values, and of what shapes: read from a forward pass, since configs may not say."""
    cache = DynamicCache()
    model(input_ids=torch.zeros(1, 2, dtype=torch.long), **{cache_argument(model): cache}, use_cache=True)
    found: Layers = {}
    for index, layer in enumerate(cache.layers):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is not None and values is not None:
            found[index] = ((keys.shape[1], keys.shape[3]), (values.shape[1], values.shape[3]))
    if not found:
        raise PruneError(
            f"onnx carries models with a key-value cache, and {type(model).__name__} fills none", where="onnx"
        )
    return found


def _graph(model: PreTrainedModel, opset: int) -> Any:
    """The traced model as an onnx_ir model, without a trace of where it was made."""
    with _traceable(model.config):
        layers = _cached_layers(model)
        program = _traced(_Flat(model, layers), _sample(model, layers), opset)
    written = program.model.opset_imports[""]
    if written != opset:  # a version that torch cannot convert to is only warned of
        raise PruneError(f"torch writes this model with opset {written}, and cannot with {opset}", where="opset")
    return _anonymous(_named(program.model, layers))


@contextmanager
def _traceable(config: PreTrainedConfig) -> Iterator[None]:
    """Ways of computing that become few plain nodes; afterwards those the model came with, where a CPU has them.

    Plain attention also gives a row of padding, which attends to nothing, finite values. Experts are applied by
    gathering each token's weights, since a loop over the experts that were chosen is no fixed graph.
    """
    attention, experts = config._attn_implementation, config._experts_implementation
    config._attn_implementation, config._experts_implementation = "eager", "batched_mm"
    try:
        yield
    finally:
        config._attn_implementation = attention if attention in ("eager", "sdpa") else "eager"
        config._experts_implementation = experts if experts in ("eager", "batched_mm", "grouped_mm") else "eager"


def _sample(model: PreTrainedModel, layers: Layers) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Inputs to trace with: no two sizes are equal, or tracing would take them for one."""
    batch, new, past = 2, 3, 4
    mask = torch.ones(batch, past + new, dtype=torch.long)
    tokens = {"input_ids": torch.zeros(batch, new, dtype=torch.long), "attention_mask": mask}
    if "position_ids" in inspect.signature(model.forward).parameters:
        tokens["position_ids"] = positions(mask)[:, past:]
    return tokens, [torch.zeros(batch, heads, past, width) for heads, width in chain.from_iterable(layers.values())]


def _traced(flat: _Flat, sample: tuple[dict[str, Tensor], list[Tensor]], opset: int) -> Any:
    tokens, past = sample
    # Plain names here: the sum that the mask's length is gets its name in `_named`.
    lengths = {"input_ids": NEW, "attention_mask": "total_sequence_length", "position_ids": NEW}
    shapes = ({name: {0: BATCH, 1: lengths[name]} for name in tokens}, [{0: BATCH, 2: PAST} for _ in past])
    with torch.no_grad(), _fewer_pauses():
        try:
            return torch.onnx.export(
                flat,
                (tokens, past),
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=[*tokens, *_cache_names("past_key_values", flat.layers)],
                output_names=["logits", *_cache_names("present", flat.layers)],
                opset_version=opset,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            name, cause = type(flat.model).__name__, str(error.__cause__ or error).strip().splitlines()[0]
            raise PruneError(f"torch cannot trace {name} into an ONNX graph: {cause[:200]}", where="onnx") from error


def _cache_names(prefix: str, layers: list[int]) -> list[str]:
    return [f"{prefix}.{layer}.{part}" for layer in layers for part in ("key", "value")]


def _named(graph_model: Any, layers: Layers) -> Any:
    """Sets the shapes of inputs and outputs in the words that deployment tools know."""
    from onnxscript import ir

    cache = list(chain.from_iterable(layers.values()))
    graph = graph_model.graph
    tokens = {"input_ids": NEW, "attention_mask": TOTAL, "position_ids": NEW}
    for value in graph.inputs[: -len(cache)]:
        value.shape = ir.Shape([BATCH, tokens[value.name]])
    for values, length in ((graph.inputs[-len(cache) :], PAST), (graph.outputs[1:], TOTAL)):
        for value, (heads, width) in zip(values, cache, strict=True):
            value.shape = ir.Shape([BATCH, heads, length, width])
    return graph_model


def _anonymous(graph_model: Any) -> Any:
    """Takes away what the exporter notes down for its own debugging: stack traces, with paths of this machine."""
    graph = graph_model.graph
    nodes = list(graph.all_nodes())
    values = chain(graph.inputs, graph.initializers.values(), chain.from_iterable(node.outputs for node in nodes))
    for thing in chain([graph_model, graph], nodes, values):
        thing.metadata_props.clear()
        thing.doc_string = None
    return graph_model


def _save_graph(graph_model: Any, folder: Path) -> None:
    from onnxscript import ir

    weights = sum(value.const_value.nbytes for value in graph_model.graph.initializers.values())
    ir.save(graph_model, folder / "model.onnx", external_data="model.onnx_data" if weights > LARGEST else None)


def _save_companions(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path) -> None:
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        # Not save_pretrained, which refuses settings that the checkpoint came with and that generation only warns of.
        model.generation_config.to_json_file(folder / "generation_config.json")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's chatter from stdout, where results go, and its advice to developers from stderr."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
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
