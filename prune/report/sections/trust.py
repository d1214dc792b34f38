"""Whether to trust the result: the proof of every cut, the exports' parity, and warnings."""

from __future__ import annotations

from prune.report import exported, summary
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
    if exports := [(number, step) for number, step in enumerate(facts.steps, 1) if step["word"] == "export"]:
        blocks.append(_exports(exports))
    if notes := _notes(facts):
        blocks.append(Points(notes))
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


def _exports(steps: list[tuple[int, dict]]) -> Rows:
    """A row for each export, a column for what any of them says."""
    columns = {
        "written as": exported.kind,
        "size": exported.files,
        "largest difference from PyTorch": exported.difference,
        "choices": exported.answers,
        "perplexity": exported.perplexity,
    }
    told = {name: [say(step["record"]) for _, step in steps] for name, say in columns.items()}
    told = {name: values for name, values in told.items() if any(values)}
    rows = [(str(number), *(values[row] for values in told.values())) for row, (number, _) in enumerate(steps)]
    return Rows(Table(("export in step", *told), rows))


def _notes(facts: Facts) -> list[str]:
    """What other steps than cuts, whose notes stand with what was cut, want to be known."""
    own = [(number, step["record"]) for number, step in enumerate(facts.steps, 1)]
    return [f"step {n}: {note}" for n, record in own if not record.get("removed") for note in record.get("notes", [])]


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
