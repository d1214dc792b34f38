"""Writes recipe.md from the signatures and docstrings of the steps: `python docs/make_recipe_reference.py`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path

from prune import steps
from prune.exports import formats
from prune.exports.export import exporter
from prune.recipe.bind import Option, describe, options, show, words
from prune.recipe.load import Settings
from prune.remove.score import criteria, criterion
from prune.remove.score import options as criterion_options
from prune.run import Calibration

PAGE = Path(__file__).parent / "recipe.md"
INTRO = """\
# Recipes

<!-- Written by docs/make_recipe_reference.py from the step signatures: change them, not this page. -->

A recipe is a YAML file that says which model to take, what to do to it, and where the result goes:

```yaml
model: bundled
output: out/small
calibration: {data: python-docs, samples: 64, length: 256}
steps:
  - remove: {what: [channels, heads], ratio: 0.25, criterion: wanda}
  - evaluate: {perplexity: python-docs}
```

Each step is a call: `- remove: {what: heads, ratio: 0.25}` is `remove(run, what="heads", ratio=0.25)`. Everything is
checked against the model's config before any weight is read (`prune check RECIPE` does only that), and a mistake is
answered with its line and column. `prune new NAME` writes a commented recipe to start from, `prune list` names what can
be named, and `--set steps.0.ratio=0.5` changes one value for one run.

The YAML is strict: no duplicate keys, anchors, aliases or tags; `true` and `false` are the only booleans; `1e-4` is a
number. Paths in a recipe are relative to the folder the command runs in.

A ratio is the share that is *removed*. Scores are high = keep.
"""


def page() -> str:
    """The whole reference."""
    parts = [INTRO, "## Keys\n", _section(Settings), "\n### calibration\n", _section(Calibration)]
    for word, function in words(steps).items():
        parts += [f"\n## {word}\n", _section(function)]
        if word == "export":
            parts += [part for name in formats() for part in (f"\n### format: {name}\n", _section(exporter(name)))]
    parts += ["\n## Criteria\n", *(_criterion(name) for name in criteria())]
    return "\n".join(parts) + "\n"


def _criterion(name: str) -> str:
    """One line of a list: what a criterion is, the kinds it scores, its options and their defaults."""
    module = criterion(name)
    settings = [
        f"`{option}: {show(known.default)}`".replace("'", "") for option, known in criterion_options(name).items()
    ]
    kinds = ", ".join(module.KINDS)
    text = " ".join((module.__doc__ or "").split("\n\n")[0].split())
    return f"- `{name}`: {text} Scores {kinds}." + (f" Options: {', '.join(settings)}." if settings else "")


def _section(function: Callable) -> str:
    """The first paragraph of a docstring, and a table of the options with what the docstring says of each."""
    known = options(function) if not hasattr(function, "more") else _own(function)
    summary, meanings = _read(inspect.getdoc(function) or "", known)
    missing = set(known) - set(meanings)
    assert not missing, f"{function.__name__}: the docstring says nothing of {', '.join(sorted(missing))}"
    rows = [
        f"| `{name}` | {_cell(_kind(option))} | {_default(option)} | {_cell(meanings[name])} |"
        for name, option in known.items()
    ]
    return "\n".join([summary, "", "| name | may be | when left out | |", "| --- | --- | --- | --- |", *rows])


def _own(function: Callable) -> dict[str, Option]:
    """The options of a step itself, without those that it hands on."""
    others = options(function.more({}))  # type: ignore[attr-defined]
    return {name: option for name, option in options(function).items() if name not in others}


def _read(text: str, known: dict[str, Option]) -> tuple[str, dict[str, str]]:
    """The paragraphs before the options, and option -> its words; an option starts a line with `name: `."""
    summary: list[str] = []
    meanings: dict[str, str] = {}
    current = None
    for line in text.splitlines():
        start = re.match(r"(\w+): (.*)", line)
        if start and start[1] in known:
            current = start[1]
            meanings[current] = start[2]
        elif current and line.strip():
            meanings[current] += f" {line.strip()}"
        else:
            current = None
            summary.append(line)
    return "\n".join(summary).strip(), meanings


def _kind(option: Option) -> str:
    return describe(option.annotation).removesuffix(", or null")


def _default(option: Option) -> str:
    if option.required:
        return "needed"
    nothing = option.default is None or option.default in ([], {})
    return "" if nothing else f"`{show(option.default)}`".replace("'", "")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
