"""The recipe as run, and what it takes to make the output again."""

from __future__ import annotations

from prune.report import summary
from prune.report.blocks import Block, Code, Facts, Prose, Rows, Section
from prune.report.reproduce import recipe_yaml
from prune.report.table import Table


def section(facts: Facts) -> Section | None:
    manifest = facts.manifest
    blocks: list[Block] = [Code(recipe_yaml(manifest))]
    blocks.append(
        Prose(
            "Saved as `recipe.yaml`, `prune apply recipe.yaml --output OUT` makes the same bytes again from the same "
            f"input and versions on the same kind of device (here {manifest.get('device', 'unknown')}, seed "
            f"{manifest.get('seed', 0)}); `prune verify OUT` compares every file with the hashes below."
        )
    )
    versions = [(str(name), str(version)) for name, version in (manifest.get("versions") or {}).items()]
    seconds = [
        (f"{n} {s['word']}", _took(t)) for n, (s, t) in enumerate(zip(facts.steps, facts.timings, strict=False), 1)
    ]
    blocks.append(Rows(Table(("library", "version"), versions), "Versions"))
    if any(took for _, took in seconds):
        blocks.append(Rows(Table(("step", "time"), seconds, frozenset({1})), "Time taken"))
    inputs = (manifest.get("model") or {}).get("files") or {}
    for title, table in (("Hashes of the input", inputs), ("Hashes of the output", manifest.get("files") or {})):
        if table:
            rows = [(str(name), str(digest)) for name, digest in table.items()]
            blocks.append(Rows(Table(("file", "sha256"), rows), title))
    return Section("recipe", "Recipe", blocks)


def _took(timing: dict) -> str:
    seconds = timing.get("seconds")
    return summary.duration(seconds) if isinstance(seconds, (int, float)) else ""
