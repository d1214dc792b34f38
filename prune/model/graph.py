"""An exported ONNX graph, with a key-value cache or without, run in ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
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
    logits, *present = session.run(None, feeds(session, named, past))
    return torch.from_numpy(logits), present


def outputs(session: Any, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a graph gives, by name, for tensors by name and an empty cache."""
    found = session.run(None, feeds(session, named))
    return {value.name: torch.from_numpy(one) for value, one in zip(session.get_outputs(), found, strict=True)}


def completed(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch with all that may go with its token ids: every token attended, of the first type, at its own position."""
    if "input_ids" not in named:
        return dict(named)
    ids = named["input_ids"]
    mask = named.get("attention_mask", torch.ones_like(ids))
    return {
        "attention_mask": mask,
        "token_type_ids": torch.zeros_like(ids),
        "position_ids": positions(mask),
        **named,
    }


def feeds(session: Any, named: Mapping[str, Tensor], past: list[Any] | None = None) -> dict[str, Any]:
    """The inputs of a graph as it takes them: those that are named, in its types, and a cache, empty without `past`."""
    inputs = {value.name: value for value in session.get_inputs()}
    given = {
        name: named[name].to(TYPES.get(value.type, named[name].dtype)).numpy()
        for name, value in inputs.items()
        if name in named
    }
    caches = {name: value for name, value in inputs.items() if name.startswith("past_key_values.")}
    missing = inputs.keys() - given.keys() - caches.keys()
    assert not missing, (missing, list(named))
    if past is None:
        rows = len(next(iter(named.values())))
        past = [
            torch.zeros(rows, value.shape[1], 0, value.shape[3], dtype=TYPES[value.type]).numpy()
            for value in caches.values()
        ]
    return {**given, **dict(zip(caches, past, strict=True))}
