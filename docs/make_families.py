"""Writes families.md from what cutting a tiny model of every family gives: `python docs/make_families.py`."""

from __future__ import annotations

import copy
import itertools
import json
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tiny models live with the tests

from prune.errors import PruneError
from prune.model import family as families
from prune.model.groups import HALVES, Group, groups, kinds
from prune.model.model import Model
from prune.model.open import open as open_model
from prune.remove.choose import legal, structural
from prune.remove.cut import cut
from tests import zoo

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "families.md"
KINDS = ("heads", "query_heads", "channels", "experts", "layers", "attention", "mlp", "width")
INTRO = """\
# Model families

<!-- Written by docs/make_families.py from cuts of tiny models: change the families, not this page. -->

What can be removed from each family, and what loads the result. `tests/model/test_families.py` holds the laws behind
the table: masked equals sliced, a stock reload with equal logits to the last bit, generation with and without a cache.

- **stock**: plain transformers loads it, in a process without prune, when every layer loses as much.
- **stock, some counts**: the config refuses counts that do not divide the width; `choose` moves to the nearest that
  fits, heads first, then the width. **some as** another type: those counts are saved under a type that computes exactly
  the same.
- **prune.load**: a checkpoint of a type of its own (`prune_gpt2`), which `prune.load` and, once prune is imported, the
  Auto classes load; stock transformers refuses it by name. Layers that lose unequally always give this.
- **no**: refused, in one line that gives the reason; the same stands below the table.

"""
AFTER = """
Attention and mlp are those of whole layers. No stock config states a layer without one, hence prune.load; a layer that
loses both is dropped, and the result is stock where no other layer loses one alone. The width is that of the hidden
state; norms over it are rescaled by the ratio that was measured.

Every family also has a form whose layers differ (`scope: global`), except where the notes say otherwise. Checkpoints
are written with the names and the layout that stock transformers writes: experts one by one, ViT's under older names.

Any other network (ResNet, MobileNet, ConvNeXt, a module of your own) is cut by tracing: [any network](any-network.md).
`prune inspect` says of an unknown model what is missing; a family of your own is one file
([adding a family](adding-a-family.md)).

## Trained networks

What `tests/remove/trained.py` measured on trained checkpoints, not trained after the cut; `tests/remove/test_real.py`
measures it again and holds it to the bound in the last column. At random is a mean over seeds.

| network | measure | removed | criterion | before | after | at random | may lose at most |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""


def page() -> str:
    models = [open_model(zoo.module(name)) for name in families.names()]
    head = f"| `model_type` | classes | {' | '.join(KINDS)} |\n| --- | --- |{' --- |' * len(KINDS)}\n"
    return INTRO + head + "\n".join(map(_row, models)) + "\n\n" + "\n".join(_notes(models)) + "\n" + AFTER + _trained()


def _row(model: Model) -> str:
    first, *others = model.family.classes
    more = f" and {len(others)} more" if others else ""
    cells = " | ".join(_cell(model, kind) for kind in KINDS)
    return f"| `{model.family.model_type}` | `{first}`{more} | {cells} |"


def _cell(model: Model, kind: str) -> str:
    if kind not in kinds(model):
        return "no"
    found = groups(model, kind)
    if kind == "layers":
        small = cut(model, {"layers": [unit for part in found[0].partitions for unit in part[1:]]})
        return _word(small)
    if kind in HALVES:
        return _word(cut(model, {kind: list(range(1, found[0].units))}))
    counts = [count for count in structural(found[0]) if count < found[0].units]
    wide = _wide(model) if kind != "width" else model
    fit = [count for count in counts if legal(wide, found[0], count)]
    if not fit:
        return "prune.load"
    types = {_cut(wide, found, count).config.model_type for count in fit}
    other = "".join(f", some as `{name}`" for name in types - {model.config.model_type})
    return "stock" + (", some counts" if len(fit) < len(counts) else "") + other


def _wide(model: Model) -> Model:
    """The model with a width that not every number of heads divides, as most real ones have."""
    if "head_dim" not in model.family.sizes or model.family.encoder:
        return model
    config = copy.deepcopy(model.config)
    config.head_dim = model.numbers["head_dim"]
    config.hidden_size = 64
    return replace(model, config=config)


def _cut(model: Model, found: Sequence[Group], count: int) -> Model:
    share = count / found[0].units
    return cut(model, {g.name: [u for p in g.partitions for u in p[: round(len(p) * share)]] for g in found})


def _word(small: Model) -> str:
    if not small.uniform:
        return "prune.load"
    same = small.config.model_type == small.family.model_type
    return "stock" if same else f"stock (as `{small.config.model_type}`)"


def _notes(models: Sequence[Model]) -> list[str]:
    """What the table's words leave open, one line for all families that share it."""
    told: dict[tuple[str, str], list[str]] = {}
    for kind, model in itertools.product(KINDS, models):
        if kind not in kinds(model):
            told.setdefault((f"No {kind}", families.reason(model.family, kind)), []).append(model.family.model_type)
    for model in models:
        for about, what in _remarks(model):
            told.setdefault((about, what), []).append(model.family.model_type)
    return [_note(about, what, names, len(models)) for (about, what), names in told.items()]


def _trained() -> str:
    """The rows of what was measured on trained networks."""
    found = json.loads((ROOT / "tests" / "remove" / "trained.json").read_text(encoding="utf-8"))
    lines = []
    for row in (row for rows in found.values() for row in rows):
        right = row["measure"] == "right"
        chance = sum(row["chance"]) / len(row["chance"])
        numbers = [_share(row[key]) if right else _small(row[key]) for key in ("before", "after")]
        numbers.append(_share(chance) if right else _small(chance))
        most = _points(row["at_most"]) if right else _small(row["at_most"])
        cells = [row["network"], row["measure"], row["removed"], row["criterion"], *numbers, most]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _points(value: float) -> str:
    return f"{100 * value:.0f} point{'s' * (value != 0.01)}" if value else "nothing"


def _small(value: float) -> str:
    return f"{value:.5f}" if value >= 1e-5 else "0" if not value else "below 0.00001"


def _note(about: str, what: str, names: Sequence[str], among: int) -> str:
    if len(names) > among / 2:
        rest = ", ".join(f"`{name}`" for name in families.names() if name not in names)
        whose = f"all but {rest}"
    else:
        whose = ", ".join(f"`{name}`" for name in names)
    text = f"- **{about}** in {whose}: {what}."
    return textwrap.fill(text, 120, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)


def _remarks(model: Model) -> list[tuple[str, str]]:
    family = model.family
    found = [(f"{kind.capitalize()} by prune.load only", why) for kind, why in family.fixed.items()]
    if family.alias:
        found.append(("Another type", f"counts the config refuses are saved as `{family.alias.model_type}`"))
    if not family.differing:
        found.append(("No layers that differ", "every layer must lose as much"))
    if family.numbered:
        found.append(("No layers", f"where the config sets {', '.join(f'`{name}`' for name in family.numbered)}"))
    if "experts" in family.parts:
        found.append(("Channels of experts", "they stay in multiples of 8, as grouped kernels need"))
    if any(".shared_expert." in name for name in model.tensors.info):
        found.append(("Shared expert", "it is never cut; `channels` and `experts` are those that the router chooses"))
    return found


if __name__ == "__main__":
    try:
        PAGE.write_text(page(), encoding="utf-8")
    except PruneError as error:
        sys.exit(str(error))
