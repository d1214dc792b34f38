"""The report of a run: one page that holds everything, the numbers for machines, and each plot with its numbers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prune.report import summary
from prune.report.blocks import Data, Facts, Picture, Plot, Section
from prune.report.sections import (
    generations,
    loading,
    merge,
    recipe,
    removed,
    result,
    scores,
    speed,
    synthesis,
    tasks,
    training,
    trust,
)

PARTS = (
    result,
    removed,
    scores,
    training,
    tasks,
    generations,
    merge,
    synthesis,
    speed,
    trust,
    loading,
    recipe,
)
TEMPLATES = Path(__file__).parent / "templates"


def report(manifest: Mapping[str, Any], timings: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """File name -> text: index.html, metrics.json, and an SVG and a CSV for each plot.

    `manifest` is the content of prune.json and `timings` that of timings.json, step by step. The same content gives the
    same bytes, and what is missing from it is missing from the page. Every name and text from outside is escaped.
    """
    facts = Facts(canonical(manifest), canonical(timings))
    sections = [found for part in PARTS if (found := part.section(facts))]
    files = {"index.html": _page(facts, sections), "metrics.json": _json(metrics(facts))}
    for block in _drawn(sections):
        files[f"{block.name}.csv"] = as_csv(block.data)
        if isinstance(block, Plot):
            files[f"{block.name}.svg"] = _alone(block.svg)
    return files


def canonical(value: Any) -> Any:
    """As it comes back from JSON: the page is the same before it was written and after."""
    return json.loads(json.dumps(value, sort_keys=True))


def _page(facts: Facts, sections: Sequence[Section]) -> str:
    name = str((facts.manifest.get("model") or {}).get("source", "a model"))
    return render(
        "report.html",
        name=name.rstrip("/").rsplit("/", 1)[-1] if name.startswith(("/", ".", "~")) else name,
        did=_did(facts),
        tiles=result.tiles(facts),
        seals=seals(facts),
        sections=sections,
        version=(facts.manifest.get("versions") or {}).get("prune", ""),
    )


def _did(facts: Facts) -> str:
    """What the run did, in one line: the recipe's words in order."""
    return " \N{RIGHTWARDS ARROW} ".join(step["word"] for step in facts.steps)


def seals(facts: Facts) -> list[tuple[str, str]]:
    """What there is to say for and against trusting the result: (tone, text), each a few words."""
    found = []
    if worst := trust.worst(facts):
        found.append(("good", f"every cut proved: masked equals sliced to {worst[0]:.1e} (allowed {worst[1]:.0e})"))
    if types := facts.records("saved_as"):
        own = types[-1][1].startswith("prune_")
        found.append(("plain", "loads with prune" if own else f"loads in stock transformers ({types[-1][1]})"))
    if files := facts.manifest.get("files"):
        found.append(("good", f"{len(files)} file{'s' * (len(files) > 1)}, each with its hash"))
    said = len(trust.warnings(facts))
    found.append(("warn", f"{said} warning{'s' * (said > 1)}") if said else ("good", "no warnings"))
    return found


def metrics(facts: Facts) -> dict[str, Any]:
    """What was measured, for machines: the last of each; no `after` for what a later step made another model of."""
    last = {name: found[-1][1] for name in ("perplexity", "tasks", "training") if (found := facts.records(name))}
    for name in ("perplexity", "tasks"):
        if name in last and summary.changed_after(facts.records(name)[-1][0] - 1, facts.steps) is not None:
            last[name] = last[name] | {"after": None}
    if "training" in last:
        last["training"] = {key: value for key, value in last["training"].items() if key != "curve"}
    worst = trust.worst(facts)
    return {
        "changes": {change.name: change._asdict() for change in summary.changes(facts.steps, facts.timings)},
        "removed": [list(pair) for pair in summary.removed(facts.steps)],
        "speed": {m.name: _sides(m) for m in speed.measures(facts)},
        "proof": {"max_relative_difference": worst[0], "tolerance": worst[1]} if worst else None,
        "warnings": trust.warnings(facts),
        **last,
    }


def _sides(measure: speed.Measure) -> dict[str, float | None]:
    known = measure.changed is None
    after, ratio = (measure.after, measure.ratio) if known else (None, None)
    return {"before": measure.before, "after": after, "ratio": ratio}


def _drawn(sections: Sequence[Section]) -> Iterator[Plot | Picture]:
    for section in sections:
        for block in section.blocks:
            if isinstance(block, (Plot, Picture)):
                yield block


def render(template: str, **values: Any) -> str:
    """A template filled in; everything in `values` is escaped but the SVG that was drawn here."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["drawn"] = Markup
    environment.filters["ticked"] = ticked
    style = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    return environment.get_template(template).render(style=style, **values)


def ticked(text: object) -> Any:
    """Text with what stands between backticks as code; all of it escaped. A lone backtick is one."""
    from markupsafe import Markup, escape

    parts = str(text).split("`")
    if len(parts) % 2 == 0:
        parts[-2:] = ["`".join(parts[-2:])]
    made = (Markup("<code>{}</code>").format(part) if number % 2 else escape(part) for number, part in enumerate(parts))
    return Markup("").join(made)


def as_csv(data: Data) -> str:
    """Columns and rows as CSV; a text that a spreadsheet would take for a formula begins with a quote."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(data.columns)
    writer.writerows([_plain(cell) for cell in row] for row in data.rows)
    return written.getvalue()


def _plain(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def _alone(svg: str) -> str:
    return f'<?xml version="1.0" encoding="utf-8"?>\n{svg}\n'


def _json(content: Any) -> str:
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
