"""`gguf`: one file for llama.cpp and what builds on it, tokenizer and chat template included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import gguf

from prune.errors import PruneError
from prune.exports.job import Job
from prune.exports.llamacpp import container, keys
from prune.exports.llamacpp import vocabulary as vocabularies
from prune.exports.llamacpp.container import Kind
from prune.exports.llamacpp.target import target
from prune.exports.llamacpp.tensors import padded, tensors
from prune.model.model import Model
from prune.model.tensors import Tensors

Dtype = Literal["f32", "f16", "bf16", "q8_0"]
KINDS: Mapping[str, tuple[Kind, gguf.LlamaFileType]] = {
    "f32": (Kind.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (Kind.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (Kind.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (Kind.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
STREAMS = True  # one tensor in memory at a time
EXACT = ("norm", "ffn_gate_inp")  # tensors that stay float32 whatever the rest is


def export(job: Job, *, dtype: Dtype = "f16") -> dict[str, Any]:
    """A GGUF file written from the checkpoint tensor by tensor, for llama.cpp.

    dtype: of the weights. `q8_0` is 8 bits in blocks of 32 with a scale each; norms, biases and routers stay `f32`.
    """
    found = target(job.model)
    kind, file_type = KINDS[dtype]
    found = padded(found, gguf.GGML_QUANT_SIZES[kind][0])
    vocabulary = vocabularies.vocabulary(job.model)
    view = tensors(job.model, found)
    kinds = {name: _kind(name, info.shape, kind) for name, info in view.info.items()}
    path = job.folder / f"model-{dtype}.gguf"

    def state(writer: gguf.GGUFWriter) -> None:
        keys.state(writer, job.model, found, file_type)
        vocabularies.state(writer, vocabulary)

    with job.progress.track(f"export gguf {dtype}", len(kinds)) as advance:
        container.write(path, found.architecture.name, state, view, kinds, advance)
    notes = [*found.notes, *vocabulary.notes, *_fallen_back(view, kinds, kind)]
    return {
        "format": "gguf",
        "dtype": dtype,
        "architecture": found.architecture.name,
        "context": found.context,
        "files": {path.name: path.stat().st_size},
        **({"warnings": notes} if notes else {}),
    }


def check(model: Model, **_: Any) -> str | None:
    """Why a model cannot be carried, or None when it can; reads no weights."""
    try:
        target(model)
        if model.weights or model.files:  # of a model on the Hub whose headers alone are here, the tokenizer is not
            vocabularies.vocabulary(model)
    except PruneError as error:
        return error.message
    return None


def _kind(name: str, shape: tuple[int, ...], kind: Kind) -> Kind:
    """A tensor's type: float32 for what is small and sensitive, f16 where a row is no whole number of blocks."""
    if len(shape) == 1 or any(part in name for part in EXACT):
        return Kind.F32
    return kind if shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0 else Kind.F16


def _fallen_back(view: Tensors, kinds: Mapping[str, Kind], kind: Kind) -> list[str]:
    if kind is not Kind.Q8_0:
        return []
    others = [name for name in view.info if kinds[name] is Kind.F16]
    return [f"{len(others)} tensors are f16: their rows are no multiple of 32"] if others else []
