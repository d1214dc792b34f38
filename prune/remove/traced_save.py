"""A cut network on disk: safetensors, the plan, and ONNX when asked; nothing in it is code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prune import files
from prune.errors import PruneError
from prune.model.checkpoint import write_folder
from prune.model.graph import open_graph, outputs
from prune.model.tensors import Info, Tensors
from prune.model.tracing import Ports, traced, write
from prune.remove.traced import evaluating, tensors_of

PLAN = "plan.json"
ONNX = "model.onnx"
TOLERANCE = 1e-3  # of the outputs' scale, between PyTorch and ONNX Runtime


def save(
    module: nn.Module,
    plan: Mapping[str, Sequence[int]],
    folder: str | Path,
    *,
    example: Tensor | tuple[Tensor, ...] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a cut network's tensors and the plan that made it; `prune.narrow(module, folder)` loads them.

    With an `example` input (batch, ...), or a tuple of them, an ONNX graph for any batch size is written beside them,
    and compared with the module; of several outputs it has the first. The folder appears whole or
    not at all. Raises PruneError.
    """
    inputs = _named(example)
    state = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    info = {name: Info(tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}
    with files.staged(folder, overwrite=overwrite) as staging:
        table = write_folder(Tensors(info, state.__getitem__), staging)
        files.write_json(staging / PLAN, {name: list(kept) for name, kept in plan.items()})
        if inputs:
            _export(module, inputs, staging / ONNX)
        files.flush(staging)
        table |= {name: files.sha256(staging / name) for name in files.names(staging) if name not in table}
        files.write_json(
            staging / files.MANIFEST, {"format": files.MARK, "files": table, "source": type(module).__name__}
        )
    return Path(folder)


def _named(example: Any) -> dict[str, Tensor]:
    """Inputs by the names they have in a graph: input, input_2 and so on."""
    given = () if example is None else example if isinstance(example, tuple) else (example,)
    if not all(isinstance(each, Tensor) and each.ndim for each in given):
        raise PruneError("a graph takes tensors (batch, ...): give one, or a tuple of them", where="example")
    return {"input" if place == 1 else f"input_{place}": each for place, each in enumerate(given, 1)}


def _export(module: nn.Module, inputs: Mapping[str, Tensor], path: Path) -> None:
    pairs = _repeated(inputs, 2)  # a batch of one would be taken for a constant
    dims = {name: ("batch", *pair.shape[1:]) for name, pair in pairs.items()}
    with evaluating(module):
        write(traced(Ports(_First(module), pairs, ["output"], dims)).model, path)
        for size in (1, 3):
            _compare(module, _repeated(inputs, size), path)


def _repeated(inputs: Mapping[str, Tensor], size: int) -> dict[str, Tensor]:
    return {name: torch.cat([tensor[:1]] * size) for name, tensor in inputs.items()}


class _First(nn.Module):
    """The network as a function of named tensors; of several outputs, the first."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        return tensors_of(self.module(*inputs.values()))[:1]


def _compare(module: nn.Module, inputs: Mapping[str, Tensor], path: Path) -> None:
    found = outputs(open_graph(path), {name: tensor.cpu() for name, tensor in inputs.items()})["output"]
    with torch.no_grad():
        expected = tensors_of(module(*inputs.values()))[0]
    gap = (expected.cpu() - found).abs().max() / expected.abs().max().clamp_min(1e-12)
    if not gap <= TOLERANCE:
        raise PruneError(f"the ONNX graph differs from the module by {float(gap):.1e} of the outputs' scale")
