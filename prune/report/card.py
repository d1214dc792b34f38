"""The model card of an output: where it comes from, what was removed, what that cost, how to load and remake it."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from prune.report import course, scored, summary
from prune.report.metadata import did, metadata
from prune.report.reproduce import loading, recipe_yaml

_SPANS = re.compile(r"(`[^`]+`)|[^`]+|`")
_MARKDOWN = re.compile(r"([\\`*_\[\]|#~$])")


def card(
    manifest: dict[str, Any],
    *,
    model_type: str,
    base_model: str | None,
    licence: str | None,
    architectures: Sequence[str] = (),
) -> str:
    """Markdown with the front matter the Hub reads.

    `manifest` is the content of prune.json; `base_model` a Hub id, or None for a local folder; `licence` the base
    model's, where it is known. Names from outside are escaped wherever they stand.
    """
    steps = manifest["steps"]
    header = metadata(manifest, base_model=base_model, licence=licence, architectures=architectures)
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=True, allow_unicode=True)}---",
        f"# {escape(manifest['model']['source'])}, {did(steps)}",
        *_changed(steps),
        _measured(steps),
        _trusted(steps),
        _data(manifest["recipe"].get("calibration")),
        "## Loading\n\n" + _loading(model_type, architectures, manifest.get("runtimes") or []),
        "## Making it again\n\n" + _again(manifest),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def escape(text: object) -> str:
    """A name from outside as plain Markdown text on one line: no markup, no HTML, no table cell more."""
    return _plain(_line(text))


def spans(text: object) -> str:
    """The same, but that what stands between backticks stays code."""
    return _SPANS.sub(lambda found: found[0].replace("|", r"\|") if found[1] else _plain(found[0]), _line(text))


def _line(text: object) -> str:
    return " ".join(str(text).split())


def _plain(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", html.escape(text, quote=False))


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]], cell: Callable[[object], str] = escape) -> str:
    lines = [head, ("---",) * len(head), *(tuple(cell(text) for text in row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _changed(steps: list[dict[str, Any]]) -> list[str]:
    """What was done to the model, a part for each kind of change."""
    found = []
    if rows := summary.removed(steps):
        text = (
            "Made smaller by structured pruning: whole heads, channels or layers are gone, and the rest runs as before."
        )
        found += [text, "## What was removed\n\n" + _table(("what", "removed"), rows)]
    for step in steps:
        record = step["record"]
        if merged := record.get("merge"):
            names = [(str(one.get("model", one)) if isinstance(one, dict) else str(one),) for one in merged["inputs"]]
            how = f"By {escape(merged['method'])}" + (f", onto {escape(merged['base'])}" if merged.get("base") else "")
            found.append(f"## What was merged\n\n{how}:\n\n" + _table(("model",), names))
        if step["word"] == "upscale" and record.get("layers"):
            before, after = record["layers"]
            found.append(f"## How it was grown\n\nIts own layers were stacked: {before} became {after}.")
        if trained := record.get("training"):
            found.append(f"## How it was trained\n\n{_trained(step, trained)}")
    return found or ["Nothing was changed."]


def _trained(step: dict[str, Any], training: dict[str, Any]) -> str:
    if training.get("kept_start"):
        return f"Step `{step['word']}` did not lower the loss on held-out text, and left the model as it was."
    text = f"By `{step['word']}`"
    text += f" over {training['tokens']:,} tokens" if training.get("tokens") else ""
    if training.get("before") is not None and training.get("after") is not None:
        text += f"; the loss on held-out text went from {training['before']:.3f} to {training['after']:.3f}"
    return text + "."


def _trusted(steps: list[dict[str, Any]]) -> str:
    """The proof of the cuts, and warnings."""
    proofs = [step["record"]["proof"]["max_relative_difference"] for step in steps if step["record"].get("proof")]
    lines = []
    if proofs:
        lines.append(
            "Before each cut was written, masking the removed units in the big model and slicing them away gave the "
            f"same outputs in every layer, to {max(proofs):.1e} of their scale."
        )
    lines += [f"Warning: {escape(warning)}" for step in steps for warning in step.get("warnings", [])]
    lines.append("[report/index.html](report/index.html) shows it all on one page, with plots.")
    return "## Whether to trust it\n\n" + "\n\n".join(lines)


def _measured(steps: list[dict[str, Any]]) -> str:
    rows = [*summary.rows(summary.changes(steps)), *_tasks(steps)]
    if not rows:
        return ""
    text = "## Before and after\n\n" + _table(("", "before", "after", "change"), rows)
    how = [step["record"]["perplexity"] for step in steps if step["record"].get("perplexity")]
    if how:
        terms = {name: how[-1][name] for name in course.TERMS if name in how[-1]}
        stated = ", ".join(f"{name} {escape(summary.flat(value))}" for name, value in terms.items())
        text += f"\n\nPerplexity: {stated}."
    return "\n\n".join([text, *(escape(note) for note in summary.overtaken(steps))])


def _tasks(steps: list[dict[str, Any]]) -> list[tuple[str, str, str, str]]:
    """What the last step that scored tasks found."""
    found = [number for number, step in enumerate(steps) if step["record"].get("tasks")]
    if not found:
        return []
    known = summary.changed_after(found[-1], steps) is None
    return list(scored.rows(steps[found[-1]]["record"]["tasks"], known=known))


def _data(calibration: dict[str, Any] | None) -> str:
    if not calibration:
        return ""
    stated = ", ".join(f"{escape(name)}: {escape(value)}" for name, value in calibration.items())
    return f"## Calibration data\n\n{stated}"


def _loading(model_type: str, architectures: Sequence[str], runtimes: Sequence[dict[str, Any]]) -> str:
    why, code = loading(model_type, architectures)
    text = f"{why}\n\n```python\n{code}```"
    if runtimes:
        rows = [tuple(str(entry.get(key) or "") for key in ("runtime", "verdict", "why")) for entry in runtimes]
        text += "\n\n" + _table(("runtime", "", "with, or because"), rows, spans)
    return text


def _again(manifest: dict[str, Any]) -> str:
    recipe = recipe_yaml(manifest)
    ticks = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", recipe))])  # no value can end the block
    versions = ", ".join(f"{escape(name)} {escape(version)}" for name, version in manifest["versions"].items())
    return (
        f"`prune apply recipe.yaml --output OUT`, with {versions}, and this `recipe.yaml`:\n\n"
        f"{ticks}yaml\n{recipe}{ticks}\n\n`prune.json` has the plans, the hashes of the inputs and of every file; "
        "`prune verify` checks them."
    )
