"""The Hugging Face Hub: what is fetched, and in which order, so that a refusal comes before a download."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from prune.errors import PruneError
from prune.model.checkpoint import DTYPES
from prune.model.foreign import read_config
from prune.model.tensors import Info, Tensors

SMALL = ["*.json", "*.jinja", "*.model", "*.txt", "README.md"]  # configs, tokenizer files, the shard index, the card


def looks_like_id(source: str) -> bool:
    """Whether a name has the form of a Hub id: "name" or "owner/name". Nobody there can be called models."""
    found = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", source)
    return found is not None and not source.startswith("models/")


def fetch(source: str, revision: str | None) -> Path:
    """The local snapshot of a Hub model, downloaded where needed: safetensors and small files, no code, no pickle."""
    read_config(_snapshot(source, revision, SMALL))  # an unknown family is refused before the weights travel
    return _snapshot(source, revision, [*SMALL, "*.safetensors"])


def fetch_companions(source: str, revision: str | None) -> Path:
    """The local snapshot of the small files of what lies on the Hub, which may be no model: its tokenizer, say."""
    return _snapshot(source, revision, SMALL)


def fetch_adapter(source: str, revision: str | None) -> Path:
    """The local snapshot of a Hub adapter: its config and its safetensors."""
    return _snapshot(source, revision, ["adapter_config.json", "adapter_model.safetensors"])


def headers(source: str, revision: str | None) -> tuple[Path, Tensors]:
    """The folder of small files and the shapes of all tensors, read from the headers alone."""
    from huggingface_hub import get_safetensors_metadata
    from huggingface_hub.errors import HfHubHTTPError, NotASafetensorsRepoError, OfflineModeIsEnabled

    folder = _snapshot(source, revision, SMALL)
    try:
        metadata = get_safetensors_metadata(source, revision=revision)
    except NotASafetensorsRepoError as error:
        raise PruneError(f"Hub model {source!r} has no safetensors; pickles are never read") from error
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise PruneError(f"cannot read the headers of Hub model {source!r}: {_line(error)}") from error
    info = {
        name: Info(tuple(tensor.shape), DTYPES.get(tensor.dtype, torch.float32))
        for file in metadata.files_metadata.values()
        for name, tensor in file.tensors.items()
    }
    return folder, Tensors(info, _unread)


def _snapshot(source: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        unreached = isinstance(error, LocalEntryNotFoundError)
        why = "it is not reached, or switched off (HF_HUB_OFFLINE)" if unreached else _line(error)
        raise PruneError(f"no local folder {source!r}, and the Hub does not give it: {why}") from error


def _unread(name: str) -> Tensor:
    raise AssertionError(f"tensor {name!r} was asked for, but only headers were fetched")


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
