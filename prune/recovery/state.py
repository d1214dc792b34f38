"""Training that was stopped, on disk: weights, moments and the best weights as safetensors, the rest as JSON."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prune import files

_NAME = re.compile(r"step-([0-9]{9})")


@dataclass
class Facts:
    """What is known after `step` steps: losses along the way, the best of them, and how often it was not beaten."""

    step: int = 0
    tokens: int = 0
    before: float = 0.0
    best: float = 0.0
    best_step: int = 0
    unbeaten: int = 0
    seconds: float = 0.0
    curve: list[dict[str, Any]] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def whole(tensor: Tensor) -> Tensor:
    """A copy on the CPU, gathered where it is spread over processes (all must call)."""
    gathered: Tensor = getattr(tensor.detach(), "full_tensor", tensor.detach)()
    return gathered.to("cpu", copy=True)


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """The trained parameters, whole, on the CPU."""
    return {name: whole(parameter) for name, parameter in trained(module).items()}


def restore(module: nn.Module, values: dict[str, Tensor]) -> None:
    """Puts a snapshot back, in place."""
    with torch.no_grad():
        for name, parameter in trained(module).items():
            parameter.copy_(_spread(values[name], parameter))


def _spread(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as the other one lies."""
    if not hasattr(like, "full_tensor"):
        return value.to(like.device)
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def moments(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimiser knows of each trained parameter, as "parameter/quantity"."""
    return {
        f"{name}/{quantity}": whole(value if isinstance(value, Tensor) else torch.tensor(value))
        for name, parameter in trained(module).items()
        for quantity, value in optimizer.state.get(parameter, {}).items()
        if value is not None
    }


def restore_moments(module: nn.Module, optimizer: torch.optim.Optimizer, values: dict[str, Tensor]) -> None:
    """Gives an optimiser its knowledge back."""
    parameters = trained(module)
    for key, value in values.items():
        name, _, quantity = key.rpartition("/")
        parameter = parameters[name]
        alike = value.shape == parameter.shape
        optimizer.state[parameter][quantity] = _spread(value, parameter).clone() if alike else value


def save(folder: Path, facts: Facts, tensors: dict[str, dict[str, Tensor]]) -> None:
    """Writes a state, whole or not at all, and takes the ones before away."""
    target = folder / f"step-{facts.step:09}"
    files.make(folder)
    files.clean_stale(folder, target.name)
    files.discard(target)
    with files.staged(target) as staging:
        for name, content in tensors.items():
            save_file(content, staging / f"{name}.safetensors")
        table = {f"{name}.safetensors": files.sha256(staging / f"{name}.safetensors") for name in tensors}
        files.write_json(staging / "state.json", {"facts": asdict(facts), "files": table})
    for other in folder.iterdir():
        if other != target and _NAME.fullmatch(other.name):
            files.discard(other)


def load(folder: Path) -> tuple[Facts, dict[str, dict[str, Tensor]]] | None:
    """The latest state whose files are what was written; None where there is none."""
    for path in reversed(_kept(folder)):
        content = files.read_json(path / "state.json")
        if not files.compare(path, content["files"], ignore={"state.json"}):
            names = [name.removesuffix(".safetensors") for name in content["files"]]
            return Facts(**content["facts"]), {name: load_file(path / f"{name}.safetensors") for name in names}
    return None


def latest(folder: Path) -> Path | None:
    """Where the latest state lies; None where there is none."""
    return next(reversed(_kept(folder)), None)


def _kept(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name)) if folder.is_dir() else []
