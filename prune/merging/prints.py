"""What tells the bytes of a merge's inputs from others: the sha256 of every file that it would read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prune import files
from prune.merging.config import Reference
from prune.merging.inputs import folder
from prune.merging.methods import names
from prune.merging.parse import parse


def of_config(path: str) -> dict[str, Any]:
    """The config's own bytes, and those of every model that it names."""
    config = parse(path, names())
    source = config.vocabulary.source
    named = [*config.references, *([source] if isinstance(source, Reference) else [])]
    ends = [end for one in named for end in (one.model, one.lora) if end]
    return {"config": files.sha256(path), **{end: of_folder(folder(end, config)) for end in ends}}


def of_value(value: Any) -> dict[str, Any]:
    """The bytes of every folder that is named anywhere in a part of a config."""
    found = {}
    for text in _texts(value):
        for end in [text] if Path(text).expanduser().is_dir() else text.split("+"):
            if Path(end).expanduser().is_dir():
                found[end] = of_folder(end)
    return found


def of_folder(path: str) -> dict[str, str] | str:
    """File name -> sha256 of what a model or adapter folder holds; a Hub id is itself."""
    place = Path(path).expanduser()
    if not place.is_dir():
        return path
    read = [name for name in files.names(place) if name.endswith((".safetensors", ".json", ".model", ".jinja", ".txt"))]
    return {name: files.sha256(place / name) for name in read if name not in (files.MANIFEST, files.TIMINGS)}


def _texts(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [text for inner in value.values() for text in _texts(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in _texts(inner)]
    return [value] if isinstance(value, str) else []
