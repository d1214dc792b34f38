"""Whether to trust the result: the proof of every cut, the exports' parity, and warnings."""

from __future__ import annotations

from prune.report import summary
from prune.report.blocks import Block, Facts, Points, Prose, Rows, Section
from prune.report.table import Table


def section(facts: Facts) -> Section | None:
    blocks: list[Block] = []
    if proofs := facts.records("proof"):
        blocks += [
            Prose(
                "Masking the removed units in the big model and slicing them away must give the same outputs in every "
                "layer. The largest difference, relative to the outputs' scale:"
            ),
            Rows(
                Table(
                    ("step", "largest difference", "allowed", "layers", "tokens"),
                    _proofs(proofs),
                    frozenset({1, 2, 3, 4}),
                )
            ),
        ]
    if exports := [row for number, step in enumerate(facts.steps, 1) for row in _export(number, step)]:
        blocks.append(Rows(Table(("export", "", ""), exports)))
    if said := warnings(facts):
        blocks.append(Points(said, "warn"))
    return Section("trust", "Proof and warnings", blocks) if blocks else None


def _proofs(proofs: list) -> list[tuple[str, ...]]:
    return [
        (
            f"{number}",
            f"{proof['max_relative_difference']:.1e}",
            f"{proof['tolerance']:.0e}",
            str(proof.get("layers", "")),
            str(proof.get("tokens", "")),
        )
        for number, proof in proofs
    ]


def _export(number: int, step: dict) -> list[tuple[str, ...]]:
    if step["word"] != "export":
        return []
    name = f"step {number}, {step['options'].get('format', '')}"
    rest = {key: value for key, value in step["record"].items() if key not in ("needs", "files")}
    return [(name, key.replace("_", " "), said(value)) for key, value in rest.items() if value not in (None, {}, [])]


def said(value: object) -> str:
    """A value in words: mappings as pairs, small numbers short."""
    if isinstance(value, dict):
        return "; ".join(f"{str(key).replace('_', ' ')} {said(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(said, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def warnings(facts: Facts) -> list[str]:
    """Every step's warnings, and what was measured before the model changed again."""
    own = [f"step {n}: {line}" for n, step in enumerate(facts.steps, 1) for line in step.get("warnings", [])]
    return own + summary.overtaken(facts.steps)


def worst(facts: Facts) -> tuple[float, float] | None:
    """The largest difference of all proofs, and what was allowed."""
    proofs = [proof for _, proof in facts.records("proof")]
    if not proofs:
        return None
    return max(p["max_relative_difference"] for p in proofs), min(p["tolerance"] for p in proofs)
