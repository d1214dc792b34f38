"""The files beside the weights: carried byte for byte, except where they name code that nobody should run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prune.errors import PruneError

# What makes transformers fetch or run code.
CODE_KEYS = ("auto_map", "trust_remote_code", "attn_implementation", "experts_implementation", "custom_pipelines")
SETTINGS = ("tokenizer_config.json", "generation_config.json", "special_tokens_map.json", "preprocessor_config.json")


def content(path: Path) -> bytes:
    """A companion's bytes as they may travel on. Raises PruneError for settings that are not JSON."""
    raw = path.read_bytes()
    if path.name not in SETTINGS:
        return raw
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise PruneError(f"not readable as JSON: {error}", where=str(path)) from error
    clean = without_code(values)
    return raw if clean == values else (json.dumps(clean, indent=2, ensure_ascii=False) + "\n").encode()


def without_code(values: Any) -> Any:
    """JSON without the keys that name code, at any depth."""
    if isinstance(values, dict):
        return {key: without_code(value) for key, value in values.items() if key not in CODE_KEYS}
    return [without_code(value) for value in values] if isinstance(values, list) else values


@contextmanager
def folder_without_code(files: Mapping[str, Path]) -> Iterator[Path]:
    """A folder that holds the files as they may be read: their own, or a temporary copy.

    They are copied where one names code, and where they do not lie in one folder.
    """
    folders = list(dict.fromkeys(path.parent for path in files.values()))
    changed = {name: content(path) for name, path in files.items() if name in SETTINGS}
    if len(folders) == 1 and all(files[name].read_bytes() == raw for name, raw in changed.items()):
        yield folders[0]
        return
    with tempfile.TemporaryDirectory() as temporary:
        for name, path in files.items():
            Path(temporary, name).write_bytes(changed.get(name) or path.read_bytes())
        config = next((place for own in folders if (place := own / "config.json").is_file()), None)
        if config is not None:
            Path(temporary, "config.json").write_text(json.dumps(without_code(json.loads(config.read_bytes()))))
        yield Path(temporary)
