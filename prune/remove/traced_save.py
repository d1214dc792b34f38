"""A cut network on disk: safetensors, the plan, and ONNX when asked; nothing in it is code."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prune import files
from prune.errors import PruneError
from prune.model.checkpoint import write_folder
from prune.model.tensors import Info, Tensors
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
        write_folder(Tensors(info, state.__getitem__), staging)
        files.write_json(staging / PLAN, {name: list(kept) for name, kept in plan.items()})
        if example is not None:
            _export(module, example, staging / ONNX)
        files.flush(staging)
        table = files.hashes(staging)
        files.write_json(
            staging / files.MANIFEST, {"format": files.MARK, "files": table, "source": type(module).__name__}
        )
    return Path(folder)


def _export(module: nn.Module, example: Tensor, path: Path) -> None:
    pair = torch.cat([example[:1], example[:1]])  # a batch of one would be taken for a constant
    batch = torch.export.Dim("batch", min=1, max=4096)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with evaluating(module), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (pair,),
            str(path),
            dynamo=True,
            dynamic_shapes=({0: batch},),
            input_names=["input"],
            external_data=False,
            verbose=False,
        )
        for size in (1, 3):
            _compare(module, torch.cat([example[:1]] * size), path)


def _compare(module: nn.Module, inputs: Tensor, path: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found: Any = session.run(None, {"input": inputs.cpu().numpy()})[0]
    with torch.no_grad():
        output = module(inputs)
    expected = output if isinstance(output, Tensor) else output[0]
    gap = (expected.cpu() - torch.from_numpy(found)).abs().max() / expected.abs().max().clamp_min(1e-12)
    if not gap <= TOLERANCE:
        raise PruneError(f"the ONNX graph differs from the module by {float(gap):.1e} of the outputs' scale")
