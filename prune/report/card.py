"""The model card of an output: where it comes from, what was removed, what that cost, how to load and remake it."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from typing import Any

import yaml

from prune.report import summary

_MARKDOWN = re.compile(r"([\\`*_\[\]|#~$])")


def card(manifest: dict[str, Any], *, model_type: str, base_model: str | None, licence: str | None) -> str:
    """Markdown with the front matter the Hub reads.

    `manifest` is the content of prune.json; `base_model` a Hub id, or None for a local folder; `licence` the base
    model's, where it is known. Names from outside are escaped wherever they stand.
    """
    header: dict[str, Any] = {"library_name": "transformers", "tags": ["pruned", "structured-pruning"]}
    if base_model:
        header |= {"base_model": base_model, "base_model_relation": "finetune"}
    if licence:
        header["license"] = licence
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=True, allow_unicode=True)}---",
        f"# {escape(manifest['model']['source'])}, pruned",
        "Made smaller by structured pruning: whole heads, channels or layers are gone, and the rest runs as before.",
        "## What was removed\n\n" + _removed(manifest["steps"]),
        _measured(manifest["steps"]),
        _data(manifest["recipe"].get("calibration")),
        "## Loading\n\n" + _loading(model_type),
        "## Making it again\n\n" + _again(manifest),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def escape(text: object) -> str:
    """A name from outside as plain Markdown text on one line: no markup, no HTML, no table cell more."""
    return _MARKDOWN.sub(r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *(tuple(escape(cell) for cell in row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _removed(steps: list[dict[str, Any]]) -> str:
    rows = summary.removed(steps)
    return _table(("what", "removed"), rows) if rows else "Nothing."


def _measured(steps: list[dict[str, Any]]) -> str:
    rows = summary.rows(summary.changes(steps))
    if not rows:
        return ""
    text = "## Before and after\n\n" + _table(("", "before", "after", "change"), rows)
    how = [step["record"]["perplexity"] for step in steps if step["record"].get("perplexity")]
    if how:
        terms = {name: how[-1][name] for name in ("data", "length", "stride", "tokens") if name in how[-1]}
        stated = ", ".join(f"{name} {escape(summary.flat(value))}" for name, value in terms.items())
        text += f"\n\nPerplexity: {stated}."
    return "\n\n".join([text, *(escape(note) for note in summary.overtaken(steps))])


def _data(calibration: dict[str, Any] | None) -> str:
    if not calibration:
        return ""
    stated = ", ".join(f"{escape(name)}: {escape(value)}" for name, value in calibration.items())
    return f"## Calibration data\n\n{stated}"


def _loading(model_type: str) -> str:
    if model_type.startswith("prune_"):
        return (
            "Its layers differ in shape, so it has a model type of its own that `prune` teaches transformers:\n\n"
            '```python\nimport prune\n\nmodel = prune.load("path/to/this/folder")\n```\n\n'
            "After `import prune`, `AutoModelForCausalLM.from_pretrained` loads it too."
        )
    return (
        "A stock checkpoint:\n\n```python\nfrom transformers import AutoModelForCausalLM\n\n"
        'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")\n```'
    )


def _again(manifest: dict[str, Any]) -> str:
    tidy = json.loads(json.dumps(manifest["recipe"], sort_keys=True))  # one order, whatever the file's was
    order = sorted(tidy, key=lambda name: (name == "steps", name != "model"))
    recipe = yaml.safe_dump({name: tidy[name] for name in order}, sort_keys=False, allow_unicode=True)
    ticks = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", recipe))])  # no value can end the block
    versions = ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())
    return (
        f"`prune apply recipe.yaml --output OUT`, with {versions}, and this `recipe.yaml`:\n\n"
        f"{ticks}yaml\n{recipe}{ticks}\n\n`prune.json` has the plans, the hashes of the inputs and of every file; "
        "`prune verify` checks them."
    )
