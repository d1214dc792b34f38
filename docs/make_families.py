"""Writes families.md from what cutting a tiny model of every family gives: `python docs/make_families.py`."""

from __future__ import annotations

import copy
import sys
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

PAGE = Path(__file__).parent / "families.md"
KINDS = ("heads", "query_heads", "channels", "experts", "layers", "attention", "mlp", "width")
INTRO = """\
# Model families

<!-- Written by docs/make_families.py from cuts of tiny models: change the families, not this page. -->

What can be removed from each family, and what loads the result. `tests/model/test_families.py` holds the laws behind
the table: masked equals sliced, a stock reload with equal logits to the last bit, generation with and without a cache.

- **stock**: plain transformers loads it, in a process without prune, when every layer loses as much.
- **stock, some counts**: the config refuses counts that do not divide the width; `choose` moves to the nearest that
  fits. **some as** another type: those counts are saved under a type that computes exactly the same.
- **prune.load**: a checkpoint of a type of its own (`prune_gpt2`), which `prune.load` and, once prune is imported, the
  Auto classes load; stock transformers refuses it by name. Layers that lose unequally always give this.
- **no**: refused, with the reason below the table.

"""
AFTER = """
Attention and mlp are those of whole layers: a layer that loses both is dropped, and the result is stock where no other
layer loses one alone. The width is that of the hidden state; norms over it are rescaled by the ratio that was measured.

Every family also has a form whose layers differ (`scope: global`), except where the notes say otherwise. Checkpoints
are written with the names and the layout that stock transformers writes: experts one by one, ViT's under older names.

Any other network (ResNet, MobileNet, ConvNeXt, a module of your own) is cut by tracing: [any network](any-network.md).
`prune inspect` says of an unknown model what is missing; a family of your own is one file
([adding a family](adding-a-family.md)).

## Trained networks

What `tests/remove/test_real.py` finds of trained checkpoints, not trained after the cut; random is a mean over seeds.

| network | removed | criterion | before | after | at random |
| --- | --- | --- | --- | --- | --- |
| GPT-2 that sorts six digits, all 729 inputs right | 25 % of channels | Wanda | 100 % | 100 % | 99.7 % |
| BERT classifier of Korean reviews, 1,300 held out | 25 % of channels | Wanda | 82.7 % | 82.8 % | 82.7 % |
| the same, KL divergence of what it says | 25 % of channels | Wanda | 0 | 0.00007 | 0.00041 |
| ResNet-20, CIFAR-10, 600 held out | 25 % of channels | Taylor | 86.2 % | 75.7 % | 62.3 % |
| ResNet-56, CIFAR-10, 600 held out | 25 % of channels | Taylor | 89.3 % | 84.3 % | 77.9 % |
| Mixtral with four equal experts | 2 of 4 experts | REAP, frequency | | equal logits | |
"""


def page() -> str:
    rows, notes = [], []
    for name in families.names():
        model = open_model(zoo.module(name))
        found = [_cell(model, kind) for kind in KINDS]
        first, *others = model.family.classes
        more = f" and {len(others)} more" if others else ""
        rows.append(f"| `{name}` | `{first}`{more} | {' | '.join(found)} |")
        notes += _notes(model)
    head = f"| `model_type` | classes | {' | '.join(KINDS)} |\n| --- | --- |{' --- |' * len(KINDS)}\n"
    return INTRO + head + "\n".join(rows) + "\n\n" + "\n".join(notes) + "\n" + AFTER


def _cell(model: Model, kind: str) -> str:
    if kind not in kinds(model):
        return "no" if kind in model.family.refused else "-"
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


def _notes(model: Model) -> list[str]:
    family = model.family
    lines = [f"- `{family.model_type}`, no {kind}: {why}." for kind, why in family.refused.items()]
    lines += [f"- `{family.model_type}`, {kind} by prune.load only: {why}." for kind, why in family.fixed.items()]
    if family.alias:
        lines.append(f"- `{family.model_type}`: counts its config refuses are saved as `{family.alias.model_type}`.")
    if not family.differing:
        lines.append(f"- `{family.model_type}` has no form whose layers differ.")
    if family.numbered:
        lines.append(
            f"- `{family.model_type}`: no layers where the config sets {', '.join(f'`{n}`' for n in family.numbered)}."
        )
    if "experts" in family.parts:
        lines.append(
            f"- `{family.model_type}`: channels inside an expert stay in multiples of 8, as grouped kernels need."
        )
    return lines


if __name__ == "__main__":
    try:
        PAGE.write_text(page(), encoding="utf-8")
    except PruneError as error:
        sys.exit(str(error))
