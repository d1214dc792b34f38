"""What was cut: kind by kind, and the layers as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prune.report.blocks import Block, Data, Facts, Layer, Picture, Points, Rows, Section, Strip
from prune.report.lineage import Kept, lineage
from prune.report.table import Table

GAP = 0.18  # between two units, as a share of one


def section(facts: Facts) -> Section | None:
    rows = _rows(facts)
    if not rows:
        return None
    blocks: list[Block] = [Rows(Table(("step", "what", "removed", "chosen by"), rows))]
    blocks += [Points(lines) for lines in [[*_notes(facts), *_refits(facts)]] if lines]
    shaped = [step["record"] for step in facts.steps if step["record"].get("shape")]
    return Section("cut", "What was cut", [*blocks, *([picture(lineage(shaped))] if shaped else [])])


def _rows(facts: Facts) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for number, step in enumerate(facts.steps, 1):
        by = step["record"].get("criterion") or ("a given plan" if step["options"].get("plan") else "")
        found += [(str(number), kind, how, by) for kind, how in step["record"].get("removed", {}).items()]
    return found


def _notes(facts: Facts) -> list[str]:
    cuts = [(number, step["record"]) for number, step in enumerate(facts.steps, 1) if step["record"].get("removed")]
    return [f"step {number}: {note}" for number, record in cuts for note in record.get("notes", [])]


def _refits(facts: Facts) -> list[str]:
    """What each refit aimed at, and the damping that its linears took."""
    done = [(number, step["record"].get("refit") or {}) for number, step in enumerate(facts.steps, 1)]
    return [f"step {number}: {_refit(found)}" for number, found in done if found.get("dampings")]


def _refit(found: Mapping[str, Any]) -> str:
    dampings, raised = found["dampings"].values(), len(found.get("raised", []))
    ends = dict.fromkeys(f"{end:g}" for end in (min(dampings), max(dampings)))
    linears = f"{len(dampings)} linear{'s' * (len(dampings) > 1)}"
    return (
        f"{linears} solved anew, target {found['target']}, damping {' to '.join(ends)};"
        f" it had to be raised in {raised or 'none'} of them"
    )


def picture(layers: Sequence[Kept]) -> Picture:
    """A row for each layer of the original: its heads, its experts where it has some, and its channels."""
    mixture = any(layer.experts for layer in layers)
    columns = ["attention heads", *(["experts", "channels of each"] if mixture else ["MLP channels"])]
    columns = [name for name, holds in zip(columns, _holds(layers, mixture), strict=True) if holds]
    rows = [_layer(layer, layers, mixture) for layer in layers]
    return Picture(
        "architecture",
        "Layer by layer",
        "Every layer of the original, the first on top. Full colour is kept, pale is gone; widths are to scale within "
        "a column. A block of heads shares one key-value head.",
        columns,
        rows,
        data(layers),
    )


def _holds(layers: Sequence[Kept], mixture: bool) -> list[bool]:
    return [
        any(layer.heads for layer in layers),
        *([any(layer.experts for layer in layers)] if mixture else []),
        any(layer.channels for layer in layers),
    ]


def _layer(layer: Kept, layers: Sequence[Kept], mixture: bool) -> Layer:
    strips = [
        _heads(layer, max(other.heads for other in layers)),
        *([_experts(layer, max(other.experts for other in layers))] if mixture else []),
        _channels(layer, max(other.channels for other in layers)),
    ]
    return Layer(
        str(layer.number), _said(layer), [s for s, h in zip(strips, _holds(layers, mixture), strict=True) if h]
    )


def _said(layer: Kept) -> str:
    if layer.dropped:
        return "dropped"
    parts = []
    if layer.heads:
        parts.append(f"{len(layer.queries)}/{layer.heads} heads")
    if layer.experts:
        parts.append(f"{len(layer.left_experts)}/{layer.experts} experts")
    if layer.channels:
        parts.append(f"{layer.left_channels}/{layer.channels} ch.")
    return " · ".join(parts)


def _heads(layer: Kept, most: int) -> Strip | None:
    if not layer.heads:
        return None
    kept = set() if layer.dropped else set(layer.queries)
    boxes: dict[bool, list[str]] = {True: [], False: []}
    for query in range(layer.heads):
        first, last = query % layer.group == 0, (query + 1) % layer.group == 0
        left, right = query + (GAP if first else 0.03), query + 1 - (0.0 if last else 0.03)
        boxes[query in kept].append(_box(left, right))
    label = f"layer {layer.number}: {len(kept)} of {layer.heads} heads kept"
    return Strip(layer.heads, "".join(boxes[True]), "".join(boxes[False]), label, layer.heads / most)


def _experts(layer: Kept, most: int) -> Strip | None:
    if not layer.experts:
        return None
    kept = set() if layer.dropped else set(layer.left_experts)
    boxes: dict[bool, list[str]] = {True: [], False: []}
    for expert in range(layer.experts):
        boxes[expert in kept].append(_box(expert + GAP, expert + 1))
    label = f"layer {layer.number}: {len(kept)} of {layer.experts} experts kept"
    return Strip(layer.experts, "".join(boxes[True]), "".join(boxes[False]), label, layer.experts / most)


def _channels(layer: Kept, most: int) -> Strip | None:
    if not layer.channels:
        return None
    left = 0 if layer.dropped or (layer.experts and not layer.left_experts) else layer.left_channels
    share = 100 * left / layer.channels
    label = f"layer {layer.number}: {left} of {layer.channels} channels kept"
    cut = _box(share, 100) if share < 100 else ""
    return Strip(100, _box(0, share) if share else "", cut, label, layer.channels / most)


def _box(left: float, right: float) -> str:
    return f"M{left:.4g} 0H{right:.4g}V1H{left:.4g}z"


def data(layers: Sequence[Kept]) -> Data:
    kinds = ("heads", "kv_heads", "channels", "experts")
    rows: list[list[int]] = []
    for layer in layers:
        had = (layer.heads, layer.kv_heads, layer.channels, layer.experts)
        left = (len(layer.queries), len(layer.left_kv_heads), layer.left_channels, len(layer.left_experts))
        pairs = [(before, 0 if layer.dropped else after) for before, after in zip(had, left, strict=True)]
        rows.append([layer.number, int(layer.dropped), *(count for pair in pairs for count in pair)])
    return Data(("layer", "dropped", *(name for kind in kinds for name in (kind, f"{kind}_kept"))), rows)
