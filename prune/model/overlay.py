"""A model with some tensors changed: kept in memory, or put on disk one by one where they would not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors.torch import load_file, save_file
from torch import Tensor

from prune.model.model import Model
from prune.model.tensors import Info, Tensors

KEY = "tensor"
IN_MEMORY = 2**28  # bytes of a model whose changes are held in memory


@dataclass(frozen=True)
class Changes:
    """New values by tensor name. With a `folder` they lie there, one file each."""

    folder: Path | None = None
    held: dict[str, Tensor | Path] = field(default_factory=dict)
    owner: TemporaryDirectory[str] | None = None

    @classmethod
    def large(cls, size: int) -> Changes:
        """Changes to a model of `size` bytes: in memory, or for a large one in a folder that goes when they do."""
        if size <= IN_MEMORY:
            return cls()
        owner = TemporaryDirectory(prefix="prune-")
        return cls(Path(owner.name), owner=owner)

    def put(self, name: str, tensor: Tensor) -> None:
        """Keep a copy of a tensor's new value."""
        value = tensor.detach().cpu().contiguous()
        if self.folder is None:
            self.held[name] = value.clone()
            return
        path = self.folder / f"changed-{len(self.held):06}.safetensors"
        save_file({KEY: value}, path)
        self.held[name] = path

    def get(self, name: str) -> Tensor:
        found = self.held[name]
        return load_file(found)[KEY] if isinstance(found, Path) else found


def changed(model: Model, changes: Changes) -> Model:
    """The model with its tensors as `changes` say, cast to the types they are stored in; the input is unchanged."""
    tensors = model.tensors

    def read(name: str) -> Tensor:
        if name in changes.held:
            return changes.get(name).to(tensors.info[name].dtype)
        return tensors.read(name)

    return replace(model, tensors=Tensors(tensors.info, read))


def extended(tensors: Tensors, new: Mapping[str, Tensor]) -> Tensors:
    """The tensors and `new` ones beside them."""
    info = {**tensors.info, **{name: Info(tuple(t.shape), t.dtype) for name, t in new.items()}}
    return Tensors(info, lambda name: new[name] if name in new else tensors.read(name))
