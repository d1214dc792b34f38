"""A plan from a file: a JSON object of group name -> kept units, read as strictly as a recipe."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prune.errors import PruneError


def read_plan(path: str, kinds: Sequence[str]) -> dict[str, list[int]]:
    """The plan in a file, whose groups are all of these kinds. PruneError for anything else."""
    if not Path(path).is_file():
        raise PruneError(f"no plan file {path!r}", where="plan")
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_once)
    except (OSError, ValueError, RecursionError) as error:
        raise PruneError(f"{path} cannot be read as JSON: {error}", where="plan") from None
    if not isinstance(content, dict) or not content:
        raise PruneError(f'{path} must hold group names with kept units, as in {{"layers": [0, 2]}}', where="plan")
    for name, kept in content.items():
        if not isinstance(kept, list) or not all(type(unit) is int for unit in kept):
            raise PruneError(f"{path}: {name} must be a list of whole numbers, the units to keep", where="plan")
        if (kind := name.rsplit(".", 1)[-1]) not in kinds:
            raise PruneError(f"{path}: {name} is of kind {kind!r}, and `what` names {', '.join(kinds)}", where="plan")
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise PruneError(f"{next(n for n in names if names.count(n) > 1)!r} stands twice in the plan", where="plan")
    return found
