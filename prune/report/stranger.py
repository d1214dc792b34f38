"""What `inspect` prints of a model that no family serves."""

from __future__ import annotations

from typing import Any

from prune.report.table import Table


def blocks(found: dict[str, Any]) -> list[Table | str]:
    """Why it is not served, what its layers hold beside the nearest family's, and the way on."""
    layers, nearest = found["layers"], found["nearest"]
    known = "" if found["known_to_transformers"] else ", nor a class in this transformers (remote code is never run)"
    said: list[Table | str] = [f"{found['source']}: model type {found['model_type']!r} has no family here{known}"]
    if not layers["count"]:
        return [
            *said,
            "no layers that repeat were found; prune.trace finds the channels of any network",
            _way_on(found),
        ]
    said.append(f"layers: {layers['count']} under {layers['path']}; most like family {nearest}")
    makers = {maker for one in found["channels"] for maker in one["made_by"]}
    readers = {one["read_by"] for one in found["channels"]}

    def note(name: str) -> str:
        linear = name.removesuffix(".weight")
        guess = "makes channels, by its shape" if linear in makers else ""
        guess = "reads channels, by its shape" if linear in readers else guess
        return f"as in {nearest}" if name in found["has"] else guess or ("?" if name in found["beside"] else "")

    rows = [(name, " x ".join(map(str, shape)), note(name)) for name, shape in found["tensors"].items()]
    said.append(Table(("tensor of a layer", "shape", ""), rows, frozenset({1})))
    if found["lacks"]:
        said.append(f"missing of {nearest}: {', '.join(found['lacks'])}")
    absent = [number for number, key in found["config"].items() if key is None]
    if absent:
        said.append(f"the config states no {', '.join(absent)} under a usual name")
    return [*said, *_draft(found), _way_on(found)]


def _draft(found: dict[str, Any]) -> list[str]:
    if not found["draft"]:
        return []
    return [f"a file to start from, prune/model/families/{found['model_type']}.py:", *found["draft"].splitlines()]


def _way_on(found: dict[str, Any]) -> str:
    if found["known_to_transformers"]:
        return f"{found['page']} says how to add a family; prune.trace cuts the channels of other networks"
    nearest = found["nearest"]
    same = (
        "" if found["lacks"] or found["beside"] else f"; if it computes what {nearest} does, say so in its config.json"
    )
    return f"a family needs a class in transformers ({found['page']}){same}; prune.trace cuts other networks"
