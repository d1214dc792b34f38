"""What a merge did: how far each layer moved, and where the models disagree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prune.report.blocks import Block, Data, Facts, Plot, Prose, Rows, Section
from prune.report.drawing import AFTER, CUT, SERIES, figure, plot, short, tidy
from prune.report.table import Table


def section(facts: Facts) -> Section | None:
    blocks: list[Block] = []
    for number, found in facts.records("merge"):
        onto = f" onto {found['base']}" if found.get("base") else ""
        blocks.append(Prose(f"Step {number} merges by {found.get('method', 'an unnamed method')}{onto}."))
        if inputs := _inputs(found.get("inputs")):
            told = any(said for _, said in inputs)
            head = ("input", "settings") if told else ("input",)
            blocks.append(Rows(Table(head, inputs if told else [row[:1] for row in inputs])))
        if layers := found.get("layers"):
            blocks += _plots(number, layers)
    return Section("merge", "Merge", blocks) if blocks else None


def _inputs(inputs: Any) -> list[tuple[str, ...]]:
    """Models by name, or with what is said of each."""
    if isinstance(inputs, dict):
        return [(str(name), _flat(said)) for name, said in inputs.items()]
    found: list[tuple[str, ...]] = []
    for one in inputs or []:
        if isinstance(one, dict):
            name = str(one.get("model", one.get("source", "")))
            found.append((name, _flat({key: v for key, v in one.items() if key not in ("model", "source", "files")})))
        else:
            found.append((str(one), ""))
    return found


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_flat(inner)}" for name, inner in value.items() if inner not in (None, {}, []))
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _plots(number: int, layers: Sequence[dict[str, Any]]) -> list[Plot]:
    made = []
    models = list(dict.fromkeys(name for layer in layers for name in layer.get("delta_norm") or {}))
    if models:
        lines = {name: [(layer.get("delta_norm") or {}).get(name) for layer in layers] for name in models}
        made.append(
            _lines(f"merge-{number}-delta", "How far each model is from the base", "norm of the delta", layers, lines)
        )
    for key, title, label in (
        ("cosine", "How alike the deltas are", "cosine"),
        ("sign_conflicts", "Where signs conflict", "share of weights"),
    ):
        values = [_mean(layer.get(key)) for layer in layers]
        if any(value is not None for value in values):
            made.append(_lines(f"merge-{number}-{key}", title, label, layers, {label: values}))
    return made


def _mean(value: Any) -> float | None:
    """A number, or the mean of a mapping of them."""
    if isinstance(value, dict):
        known = [inner for inner in value.values() if isinstance(inner, (int, float))]
        return sum(known) / len(known) if known else None
    return float(value) if isinstance(value, (int, float)) else None


def _lines(
    name: str, title: str, label: str, layers: Sequence[dict[str, Any]], lines: dict[str, list[float | None]]
) -> Plot:
    places = [layer.get("layer", number) for number, layer in enumerate(layers)]
    colours = SERIES if len(lines) > 1 else ((AFTER,) if "cosine" in name else (CUT,))
    with figure(5.0, 2.6) as drawn:
        axes: Any = drawn.subplots()
        for number, (own, values) in enumerate(lines.items()):
            known = [(n, value) for n, value in enumerate(values) if value is not None]
            style = {"linestyle": "-" if number < len(colours) else "--"}
            axes.plot(
                *zip(*known, strict=True),
                color=colours[number % len(colours)],
                marker="o",
                markersize=4,
                label=short(own),
                **style,
            )
        step = max(len(places) // 10, 1)
        axes.set_xticks(range(0, len(places), step), [str(place) for place in places[::step]])
        axes.set_xlabel("layer")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        if len(lines) > 1:
            axes.legend(loc="best")
        tidy(axes)
        rows = [(place, *(values[n] for values in lines.values())) for n, place in enumerate(places)]
        return plot(name, title, "Layer by layer.", drawn, Data(("layer", *lines), rows))
