"""A module shrunk to given shapes: how a cut network gets back into the user's own class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from prune.errors import PruneError
from prune.model.checkpoint import read_folder

Shapes = Mapping[str, tuple[int, ...]]


def narrow(module: nn.Module, folder: str | Path) -> nn.Module:
    """Shrink a freshly built network to what was saved in `folder`, and load the weights, every one of them.

    `module` is of the class and arguments of the network that was cut; it is changed in place and given back. Raises
    PruneError when names differ or a saved tensor is larger than the module's.
    """
    tensors = read_folder(Path(folder).expanduser())
    to_shapes(module, {name: info.shape for name, info in tensors.info.items()}, str(folder))
    module.load_state_dict({name: tensors.read(name) for name in tensors.info}, strict=True)
    return module


def to_shapes(module: nn.Module, shapes: Shapes, where: str | None = None) -> nn.Module:
    """Give every parameter and buffer its shape in `shapes`, in place, and tell its module; values are not kept."""
    state = module.state_dict()
    for name in sorted(set(state) ^ set(shapes)):
        raise PruneError(
            f"tensor {name!r} is only in the {'module' if name in state else 'saved network'}", where=where
        )
    for name, tensor in state.items():
        if len(shapes[name]) != tensor.ndim or any(
            new > old for new, old in zip(shapes[name], tensor.shape, strict=True)
        ):
            raise PruneError(
                f"{name!r} has shape {list(tensor.shape)}; {list(shapes[name])} is no part of it", where=where
            )
    for path, holder in module.named_modules():
        prefix = f"{path}." if path else ""
        changed = False
        for name, old in [*holder.named_parameters(recurse=False), *holder.named_buffers(recurse=False)]:
            shape = shapes.get(prefix + name, tuple(old.shape))
            if shape != tuple(old.shape):
                changed = True
                new = torch.zeros(shape, dtype=old.dtype, device=old.device)
                is_parameter = isinstance(old, nn.Parameter)
                setattr(holder, name, nn.Parameter(new, requires_grad=old.requires_grad) if is_parameter else new)
        if changed:
            _tell(holder)
    return module


def _tell(holder: nn.Module) -> None:
    """The numbers that a module keeps beside its weights, read off their shapes."""
    if isinstance(holder, nn.Linear):
        holder.out_features, holder.in_features = holder.weight.shape
    elif isinstance(holder, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        if 1 < holder.groups == holder.in_channels == holder.out_channels:  # depthwise: each channel is its own group
            holder.groups = len(holder.weight)
        holder.out_channels, holder.in_channels = len(holder.weight), holder.weight.shape[1] * holder.groups
    elif isinstance(holder, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        kept = holder.weight if holder.weight is not None else holder.running_mean
        holder.num_features = len(kept) if kept is not None else holder.num_features
    elif isinstance(holder, nn.PReLU):
        holder.num_parameters = len(holder.weight)
