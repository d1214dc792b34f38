"""What loads the result, and how."""

from __future__ import annotations

from prune.report.blocks import Block, Code, Facts, Prose, Rows, Section
from prune.report.reproduce import loading
from prune.report.table import Table


def section(facts: Facts) -> Section | None:
    types = facts.records("saved_as")
    runtimes = facts.manifest.get("runtimes") or []
    if not types and not runtimes:
        return None
    blocks: list[Block] = []
    if runtimes:
        rows = [tuple(str(entry.get(k) or "") for k in ("runtime", "verdict", "why")) for entry in runtimes]
        blocks.append(Rows(Table(("runtime", "", "with, or because"), rows)))
    if types:
        number, model_type = types[-1]
        named = facts.steps[number - 1]["record"].get("architecture")
        why, code = loading(model_type, [named] if named else [])
        blocks += [Prose(why), Code(code)]
    return Section("loading", "What loads it", blocks)
