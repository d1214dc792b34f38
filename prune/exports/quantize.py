"""A float32 graph in fewer bits, by ONNX Runtime's own quantiser, and what that costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prune import data
from prune.exports import tied
from prune.measure import token_loss
from prune.model.graph import open_graph, run_graph
from prune.model.tracing import DATA, quiet, rewrite

WINDOWS, LENGTH = 16, 256  # of the text whose perplexity before and after is stated
Feeds = dict[str, Any]  # what a graph takes, by name, as arrays


def to_int8(path: Path, *, batches: Sequence[Feeds] | None = None) -> None:
    """Puts an int8 graph in the place of the float32 one at `path`.

    Weights of matrix products are int8 with a scale for each output channel, and so are embeddings, with one scale, or
    with one for each token where they are the head too. Activations are uint8, over a range found in each call, or with
    `batches` (the graph's inputs) over the range they had on those.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
    from onnxscript import ir

    done = tied.to_int8(path)
    large = path.with_name(DATA).exists()
    out = path.with_name("int8.onnx")
    # Seven bits of eight: without VNNI instructions, sums of two products of eight-bit numbers overflow sixteen bits.
    common: dict[str, Any] = {"per_channel": True, "reduce_range": True, "weight_type": QuantType.QInt8}
    common |= {"use_external_data_format": large, "nodes_to_exclude": done}
    with quiet():
        if batches is None:
            quantize_dynamic(path, out, **common)
        else:
            quantize_static(
                path,
                out,
                _reader(batches),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                op_types_to_quantize=["MatMul", "Gemm", "Gather"],
                extra_options={"MatMulConstBOnly": True},
                **common,
            )
        rewrite(ir.load(out), path)
        for old in path.parent.glob("int8.onnx*"):
            old.unlink()


def _reader(batches: Sequence[Feeds]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest: Iterator[Feeds] = iter(batches)

        def get_next(self) -> Feeds | None:
            return next(self.rest, None)

    return Reader()


def perplexity(path: Path, module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> dict[str, Any]:
    """Perplexity of a causal language model's graph beside that of the float32 module it was made of, on some text."""
    bound = getattr(module.config.get_text_config(), "max_position_embeddings", None) or LENGTH
    length = min(LENGTH, bound)
    windows = data.windows(text, tokenizer, length=length, samples=WINDOWS, batch_size=1)
    graph = open_graph(path)
    before = _perplexity(windows, lambda ids, mask: module(input_ids=ids, attention_mask=mask, use_cache=False).logits)
    after = _perplexity(windows, lambda ids, mask: run_graph(graph, ids, mask)[0].float())
    tokens = sum(int((window["labels"][:, 1:] != data.IGNORED).sum()) for window in windows)
    terms = {"data": data.describe(text), "length": length, "stride": data.longest_stride(tokenizer, length)}
    return {**terms, "tokens": tokens, "before": before, "after": after}


def _perplexity(windows: Sequence[Feeds], logits: Callable[[Tensor, Tensor], Tensor]) -> float:
    losses = [token_loss(logits(window["input_ids"], window["attention_mask"]), window["labels"]) for window in windows]
    return math.exp(min(sum(loss for loss, _ in losses) / max(sum(count for _, count in losses), 1), 700.0))
