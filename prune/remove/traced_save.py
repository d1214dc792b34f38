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
from prune.remove.traced import evaluating

PLAN = "plan.json"
ONNX = "model.onnx"
TOLERANCE = 1e-3  # of the outputs' scale, between PyTorch and ONNX Runtime


def save(
    module: nn.Module,
    plan: Mapping[str, Sequence[int]],
    folder: str | Path,
    *,
    example: Tensor | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a cut network's tensors and the plan that made it; `prune.narrow(module, folder)` loads them.

    With an `example` input (batch, ...) an ONNX graph for any batch size is written beside them, and compared with the
    module. The folder appears whole or not at all. Raises PruneError.
    """
    state = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    info = {name: Info(tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}
    with files.staged(folder, overwrite=overwrite) as staging:
        table = write_folder(Tensors(info, state.__getitem__), staging)
        files.write_json(staging / PLAN, {name: list(kept) for name, kept in plan.items()})
        if example is not None:
            _export(module, example, staging / ONNX)
        files.flush(staging)
        table |= {name: files.sha256(staging / name) for name in files.names(staging) if name not in table}
        files.write_json(
            staging / files.MANIFEST, {"format": files.MARK, "files": table, "source": type(module).__name__}
        )
    return Path(folder)


def _export(module: nn.Module, example: Tensor, path: Path) -> None:
    pair = torch.cat([example[:1], example[:1]])  # a batch of one would be taken for a constant
    with evaluating(module):
        ports = Ports(_First(module), {"input": pair}, ["output"], {"input": ("batch", *pair.shape[1:])})
        write(traced(ports).model, path)
        for size in (1, 3):
            _compare(module, torch.cat([example[:1]] * size), path)


class _First(nn.Module):
    """The network as a function of one named tensor; of several outputs, the first."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        return [_first(self.module(inputs["input"]))]


def _first(output: Any) -> Tensor:
    found: Tensor = output if isinstance(output, Tensor) else output[0]
    return found


def _compare(module: nn.Module, inputs: Tensor, path: Path) -> None:
    found = outputs(open_graph(path), {"input": inputs.cpu()})["output"]
    with torch.no_grad():
        expected = _first(module(inputs))
    gap = (expected.cpu() - found).abs().max() / expected.abs().max().clamp_min(1e-12)
    if not gap <= TOLERANCE:
        raise PruneError(f"the ONNX graph differs from the module by {float(gap):.1e} of the outputs' scale")
