"""The model's module without weights, parts of it filled when they are needed, and the check that both agree."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from prune.errors import PruneError
from prune.model import layout
from prune.model.memory import release
from prune.model.model import Model
from prune.model.tensors import Info, Tensors


def skeleton(model: Model) -> PreTrainedModel:
    """The model's module on the meta device, in evaluation mode: shapes and code, no weights."""
    config = copy.deepcopy(model.config)
    config._attn_implementation = model.family.attention  # never a foreign config's: it may name code to fetch
    with torch.device("meta"), no_init_weights():
        module = model.architecture(config)
    return module.eval()


def fill(
    root: PreTrainedModel, path: str, tensors: Tensors, device: torch.device, dtype: torch.dtype | None
) -> nn.Module:
    """Give the submodule at `path` its weights, on `device` in `dtype` (None: as stored), and its buffers."""
    module = root.get_submodule(path)
    prefix = f"{path}." if path else ""
    for holder_path, holder in module.named_modules():
        start = f"{prefix}{holder_path}." if holder_path else prefix
        _fill_buffers(root, holder, start, tensors, device)  # before the weights, which its rule would draw anew
        for name, _ in list(holder.named_parameters(recurse=False)):
            value = _place(tensors.read(_stored(root, start + name, tensors)), device, dtype)
            setattr(holder, name, nn.Parameter(value, requires_grad=False))
    return module


def drop(module: nn.Module) -> None:
    """Take the weights away again: the module is back on the meta device."""
    module.to("meta")
    release()


def _place(tensor: torch.Tensor, device: torch.device, dtype: torch.dtype | None) -> torch.Tensor:
    return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)


def _fill_buffers(root: PreTrainedModel, holder: nn.Module, start: str, tensors: Tensors, device: torch.device) -> None:
    """Stored buffers are read; the others are computed by the rule that transformers uses when it loads a model."""
    computed = False
    for name, buffer in list(holder.named_buffers(recurse=False)):
        if start + name in tensors.info:
            setattr(holder, name, tensors.read(start + name).to(device))
        elif buffer.is_meta:
            setattr(holder, name, torch.empty_like(buffer, device=device))
            computed = True
    if computed:
        root._init_weights(holder)


def _stored(root: PreTrainedModel, name: str, tensors: Tensors) -> str:
    """The name under which a parameter is stored: its own, or that of the one it is tied to."""
    if name in tensors.info:
        return name
    return tied(root)[name]


def tied(root: PreTrainedModel) -> dict[str, str]:
    """Parameters that are another one under a second name: their name -> the name that is stored."""
    return dict(root.all_tied_weights_keys or {})


def _built(model: Model) -> PreTrainedModel:
    """The skeleton of a config that others wrote. Raises PruneError when transformers cannot build it."""
    try:
        count = model.numbers["layers"] - model.numbers.get("encoder_layers", 0)
        found = {name.removeprefix(model.family.layers + ".").split(".")[0] for name in model.tensors.info}
        stored = sum(number.isdigit() for number in found)
        if stored and count > 2 * stored:  # building what the weights cannot fill would take memory for nothing
            raise PruneError(
                f"config and weights disagree: the config says {count} layers, the checkpoint has {stored}",
                where=model.source,
            )
        return skeleton(model)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise PruneError(f"transformers cannot build this config: {reason}", where=model.source) from error


def check(model: Model) -> Tensors:
    """The model's tensors without those stored twice, once names, shapes and dtypes were compared with the module.

    transformers fills what is missing with random values, drops what is not expected and reads any dtype; here each
    is an error. Raises PruneError with the first offending name.
    """
    root = _built(model)
    ties = tied(root)
    wanted = {name: tuple(tensor.shape) for name, tensor in root.state_dict().items()}
    tensors = layout.as_module(model.tensors, model.family, wanted, root.base_model_prefix)
    model = replace(model, tensors=tensors)
    info = {name: found for name, found in tensors.info.items() if not _ignored(model, root, name, wanted)}
    missing = [name for name in wanted if name not in info and name not in ties]
    extra = [name for name in info if name not in wanted]
    for state, names in (("lacks", missing), ("has an unexpected", extra)):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise PruneError(
                f"config and weights disagree: the checkpoint {state} tensor {names[0]!r}{more}", where=model.source
            )
    for name, found in info.items():
        if found.shape != wanted[name]:
            raise PruneError(
                f"config and weights disagree: tensor {name!r} has shape {list(found.shape)}, the config says"
                f" {list(wanted[name])}",
                where=model.source,
            )
    _check_dtypes(model, root, info)
    doubled = [name for name in info if name in ties and ties[name] in info]
    kept = {name: found for name, found in info.items() if name not in doubled}
    if not doubled:
        return replace(tensors, info=kept)
    return Tensors(kept, _equal_twins(model, {ties[name]: name for name in doubled}))


def _ignored(model: Model, root: PreTrainedModel, name: str, wanted: dict[str, tuple[int, ...]]) -> bool:
    """Leftovers that the class itself says to ignore, and rotary tables that old checkpoints stored."""
    patterns = [
        *(root._keys_to_ignore_on_load_unexpected or []),
        r"rotary_emb\.inv_freq$",
        *model.family.stored.ignored,
    ]
    return name not in wanted and any(re.search(pattern, name) for pattern in patterns)


def _check_dtypes(model: Model, root: PreTrainedModel, info: dict[str, Info]) -> None:
    floats = {name: i.dtype for name, i in info.items() if i.dtype.is_floating_point}
    common = getattr(model.config, "dtype", None) or next(iter(floats.values()), torch.float32)
    common = getattr(torch, common) if isinstance(common, str) else common
    keep = tuple(root._keep_in_fp32_modules or ()) + tuple(root._keep_in_fp32_modules_strict or ())
    for name, dtype in floats.items():
        if dtype != common and not (dtype == torch.float32 and any(part in name for part in keep)):
            raise PruneError(
                f"config and weights disagree: tensor {name!r} is {_word(dtype)}, the config says {_word(common)}",
                where=model.source,
            )


def _equal_twins(model: Model, twins: dict[str, str]) -> Callable[[str], torch.Tensor]:
    """A reader that compares a tied parameter with its twin, where the checkpoint holds both, at the first reading."""

    def read(name: str) -> torch.Tensor:
        tensor = model.tensors.read(name)
        if name in twins and not torch.equal(tensor, model.tensors.read(twins[name])):
            raise PruneError(
                f"{twins[name]!r} and {name!r} are tied by the config but differ; set tie_word_embeddings to false",
                where=model.source,
            )
        twins.pop(name, None)
        return tensor

    return read


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
