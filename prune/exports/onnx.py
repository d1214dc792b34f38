"""ONNX: one graph under the names that Optimum gives, run in ONNX Runtime and compared with PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from prune import files
from prune.errors import PruneError
from prune.exports import decoder, encoder, layered, parity_decoder, parity_encoder, quantize
from prune.exports.job import Job
from prune.exports.parity import Written
from prune.model import family as families
from prune.model import tracing
from prune.model.companions import content
from prune.model.graph import completed, feeds, open_graph
from prune.model.model import Model
from prune.model.save import load
from prune.model.walk import Batch
from prune.progress import Progress

Dtype = Literal["fp32", "fp16", "int8"]
TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2, "int8": 0.5}  # unless the user gives another
FILE = "model.onnx"
LOOKS_AT_DATA = ("static",)


def export(
    job: Job,
    *,
    dtype: Dtype = "fp32",
    static: bool = False,
    opset: Annotated[int, Field(ge=18)] = tracing.OPSET,
    tolerance: Annotated[float, Field(gt=0)] | None = None,
    perplexity: str = "python-docs",
) -> dict[str, Any]:
    """One graph under Optimum's names, run in ONNX Runtime and compared with PyTorch in float32.

    Causal language models have their key-value cache as inputs and outputs, so that one graph serves prefill and
    decoding; encoders and vision models answer in one call.

    dtype: of the weights. int8 has a scale for each output channel, and computes in integers.
    static: with int8, fix the ranges of activations on the recipe's calibration, in place of finding them in each call;
        but for an embedding that is the head too, which finds the head's in each call still.
    opset: of the ONNX operators.
    tolerance: the largest difference of logits from PyTorch's allowed, as a share of the largest logit; when left out,
        1e-4, 2e-2 for fp16 and 0.5 for int8.
    perplexity: text on which the perplexity before and after fp16 or int8 is stated, where there is a tokenizer.
    """
    module = load(job.model, dtype=torch.float32)
    record = save(
        module,
        job.model.files,
        job.folder,
        dtype=dtype,
        opset=opset,
        tolerance=tolerance,
        batches=job.calibration if static else None,
        progress=job.progress,
    )
    if dtype != "fp32" and decoder.decodes(type(module)) and _has_tokenizer(job.model):
        tokenizer = job.model.tokenizer()
        record["perplexity_change"] = quantize.perplexity(job.folder / FILE, module.eval(), tokenizer, perplexity)
    return record


def check(model: Model, *, dtype: Dtype = "fp32", static: bool = False, **_: Any) -> str | None:
    """Why a model cannot be carried, or None when it can; reads no weights."""
    if static and dtype != "int8":
        return f"static says how int8 finds its ranges, and dtype is {dtype}"
    return _refusal(model.architecture, model.config)


def save(
    model: PreTrainedModel,
    companions: Mapping[str, Path],
    folder: Path,
    *,
    dtype: Dtype = "fp32",
    opset: int = tracing.OPSET,
    tolerance: float | None = None,
    batches: Callable[[], list[Batch]] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a module's model.onnx, with its config and `companions` (tokenizer files ...) beside it, to `folder`.

    Of a causal language model, inputs: input_ids, attention_mask, position_ids (batch, new) (the mask: batch, past +
    new), past_key_values.{i}.key and .value (batch, heads, past, width); outputs: logits (batch, new, vocabulary),
    present.{i}.key and .value. Weights past 2 GB go to model.onnx_data. `batches` fix the ranges of int8. `model` is
    not changed, and `folder` appears whole or not at all. Gives a record: opset, names and bytes of the files, parity
    figures. Raises PruneError when the architecture cannot be carried, the results differ, or `folder` is occupied.
    """
    if reason := _refusal(type(model), model.config):
        raise PruneError(reason, where="onnx")
    kind, parity = (decoder, parity_decoder) if decoder.decodes(type(model)) else (encoder, parity_encoder)
    progress = progress or Progress(quiet=True)
    track = progress.track(f"export onnx {dtype}", 1 + parity.rounds(model))
    with files.staged(folder) as staging, track as advance:
        ours = _copy(model, torch.float32)
        source = ours if dtype != "fp16" else _copy(model, torch.float16)
        path, limit, again = staging / FILE, tolerance or TOLERANCES[dtype], list[str]()
        _save_companions(ours, companions, staging, dtype)
        for whole in (False, True):
            made = _graph(kind, source, opset, whole)
            tracing.write(made.model, path)
            if dtype == "int8":
                quantize.to_int8(path, batches=_feeds(path, batches()) if batches else None)
            advance()
            try:
                found = parity.compare(Written(path, ours, made.ends, limit), advance=advance)
                break
            except PruneError as error:  # layers that were taken to be of one kind may not be
                if not made.repeats:
                    raise
                why = error.message.removesuffix("; nothing was written")
                again = [f"every layer was traced: with one traced for several {why}"]
                progress.say(f"onnx: {again[0]}")
        sizes = {name: (staging / name).stat().st_size for name in files.names(staging)}
    notes = again + found.pop("notes", [])
    said = {"format": "onnx", "dtype": dtype, "opset": opset, "files": sizes, "parity": found}
    return said | ({"notes": notes} if notes else {})


def _refusal(architecture: type[PreTrainedModel], config: PreTrainedConfig) -> str | None:
    if reason := encoder.refusal(architecture, config):
        return reason
    return decoder.refusal(architecture, config) if decoder.decodes(architecture) else None


def _has_tokenizer(model: Model) -> bool:
    return any(name.startswith("tokenizer") for name in model.files)


def _feeds(path: Path, batches: list[Batch]) -> list[dict[str, Any]]:
    """Calibration batches as the graph takes them, with an empty cache where it has one."""
    session = open_graph(path)
    return [feeds(session, completed(batch)) for batch in batches]


def _copy(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The model in `dtype` on the CPU, in eval mode; weights that are so already are shared, not copied."""
    shared: dict[int, Any] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        # In half precision the rotary tables stay as they are, as transformers itself leaves them.
        changes = tensor.is_floating_point() and (isinstance(tensor, nn.Parameter) or dtype == torch.float32)
        kind = dtype if changes else tensor.dtype
        moved = tensor.detach().to("cpu", kind)
        if moved.data_ptr() == tensor.data_ptr():
            moved = tensor
        elif isinstance(tensor, nn.Parameter):
            moved = nn.Parameter(moved, requires_grad=False)
        shared[id(tensor)] = moved
    ours = copy.deepcopy(model, shared).eval()
    ours.config.dtype = dtype
    return ours


def _graph(kind: Any, model: PreTrainedModel, opset: int, whole: bool) -> tracing.Graph:
    with _traceable(model.config):
        return layered.traced(model, _layers(model), kind.ports, opset=opset, whole=whole)


def _layers(model: PreTrainedModel) -> str | None:
    """The path of the model's layers, where the family is known."""
    name = model.config.model_type.removeprefix(families.PREFIX)
    return families.of(name).layers if name in families.names() else None


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


def _save_companions(model: PreTrainedModel, companions: Mapping[str, Path], folder: Path, dtype: Dtype) -> None:
    model.config.dtype = torch.float16 if dtype == "fp16" else torch.float32
    model.config.save_pretrained(folder)
    model.config.dtype = torch.float32
    if getattr(model, "generation_config", None) is not None:
        # Not save_pretrained, which refuses settings that the checkpoint came with and that generation only warns of.
        model.generation_config.to_json_file(folder / "generation_config.json")
    for name, file in companions.items():
        if name != "generation_config.json":
            (folder / name).write_bytes(content(file))
