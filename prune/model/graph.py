"""An exported ONNX graph with key-value cache, run in ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TYPES = {"tensor(float16)": torch.float16, "tensor(float)": torch.float32}


def open_graph(path: Path) -> Any:
    """A session that runs a graph with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def positions(mask: Tensor) -> Tensor:
    """Position ids (batch, length) as `generate` counts them: attended tokens only, so that padding takes no place."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def run_graph(session: Any, ids: Tensor, mask: Tensor, past: list[Any] | None = None) -> tuple[Tensor, list[Any]]:
    """Logits (batch, new, vocabulary) and the new cache; `mask` (batch, past + new) covers what is in the cache too."""
    named = {"input_ids": ids, "attention_mask": mask, "position_ids": positions(mask)[:, -ids.shape[1] :]}
    inputs = session.get_inputs()
    feeds = {value.name: named[value.name].numpy() for value in inputs if value.name in named}
    empty = [value for value in inputs if value.name not in named]
    if past is None:
        past = [
            torch.zeros(ids.shape[0], value.shape[1], 0, value.shape[3], dtype=TYPES[value.type]).numpy()
            for value in empty
        ]
    feeds.update(zip((value.name for value in empty), past, strict=True))
    logits, *present = session.run(None, feeds)
    return torch.from_numpy(logits), present
