"""The same prompts, before and after."""

from __future__ import annotations

from prune.report.blocks import Facts, Pair, Section


def section(facts: Facts) -> Section | None:
    found = facts.records("generations")
    if not found:
        return None
    pairs = [
        Pair(str(one.get("prompt", "")), str(one.get("before") or ""), str(one.get("after") or ""))
        for one in found[-1][1]
    ]
    return Section("generations", "Generations, side by side", pairs)
