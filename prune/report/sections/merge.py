"""What a merge did: how far each layer moved, and where the models disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prune.report.blocks import Block, Data, Facts, Plot, Prose, Rows, Section
from prune.report.drawing import AFTER, CUT, SERIES, figure, plot, short, tidy
from prune.report.table import Table


def section(facts: Facts) -> Section | None:
    blocks: list[Block] = []
    for number, found in facts.records("merge"):
        base = found.get("base")
        onto = f" onto {_name(base)}" if base else ""
        blocks.append(Prose(f"Step {number} merges by {found.get('method', 'an unnamed method')}{onto}."))
        names = [str(one) for one in found.get("inputs") or [] if one != base]
        if names:
            blocks.append(_inputs(names, facts.steps[number - 1].get("options") or {}))
        if layers := found.get("layers"):
            blocks += [*_plots(number, layers), Rows(_table(layers), "Layer by layer")]
    for number, found in facts.records("search"):
        blocks += _search(number, found)
    return Section("merge", "Merge", blocks) if blocks else None


def _inputs(names: Sequence[str], options: Mapping[str, Any]) -> Rows:
    """The models, with what the recipe says of each."""
    listed = [one for one in options.get("models") or [] if isinstance(one, Mapping)]
    said = {str(one.get("model")): _flat(one.get("parameters") or {}) for one in listed}
    if not any(said.get(name) for name in names):
        return Rows(Table(("model",), [(_name(name),) for name in names]))
    return Rows(Table(("model", "settings"), [(_name(name), said.get(name, "")) for name in names]))


def _name(source: object) -> str:
    """A Hub id whole, of a local folder its name."""
    text = str(source).rstrip("/")
    return text.rsplit("/", 1)[-1] if text.startswith(("/", ".", "~")) else text


def _search(number: int, found: dict[str, Any]) -> list[Block]:
    """How a search went, and every candidate of it."""
    tried = found.get("candidates") or []
    best = (found.get("best") or {}).get("value")
    if not tried or best is None:
        return []
    metric = found.get("metric", "perplexity")
    measure = metric if metric == "perplexity" else "share of wrong answers"
    said = (
        f"Step {number} tried {len(tried)} merges: {measure} {tried[0]['value']:.4g} at the start, {best:.4g} at best."
    )
    rows = [
        (str(own["number"]), _measured(own), _flat(own.get("weights") or []), _flat(own.get("layers") or []))
        for own in tried
    ]
    head = ("candidate", measure, "weights of each model", "layers")
    return [Prose(said), Rows(Table(head, rows, frozenset({1})), "Every candidate")]


def _measured(candidate: Mapping[str, Any]) -> str:
    """What a candidate measured, or why it has no measurement."""
    value = candidate["value"]
    return str(candidate.get("reason", "")) if value is None else f"{value:.4g}"


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_flat(inner)}" for name, inner in value.items() if inner not in (None, {}, []))
    return " to ".join(map(_flat, value)) if isinstance(value, list) else str(value)


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


def _table(layers: Sequence[dict[str, Any]]) -> Table:
    """A row for each layer: the norm of each model's delta, their cosine, the share of signs that conflict."""
    models = list(dict.fromkeys(name for layer in layers for name in layer.get("delta_norm") or {}))
    rows = []
    for number, layer in enumerate(layers):
        norms = [(layer.get("delta_norm") or {}).get(name) for name in models]
        cosine, conflicts = _mean(layer.get("cosine")), _mean(layer.get("sign_conflicts"))
        cells = ["" if norm is None else f"{norm:.4g}" for norm in norms]
        cells += ["" if cosine is None else f"{cosine:.3f}", "" if conflicts is None else f"{conflicts:.1%}"]
        rows.append((str(layer.get("layer", number)), *cells))
    head = ("layer", *(f"norm, {name}" for name in models), "cosine", "sign conflicts")
    return Table(head, rows, frozenset(range(1, len(head))))


def _mean(value: Any) -> float | None:
    """A number, or the mean of a mapping of them."""
    if isinstance(value, dict):
        known = [inner for inner in value.values() if isinstance(inner, (int, float))]
        return sum(known) / len(known) if known else None
    return float(value) if isinstance(value, (int, float)) else None


def _lines(
    name: str, title: str, label: str, layers: Sequence[dict[str, Any]], lines: dict[str, list[float | None]]
) -> Plot:
    """A line along the layers; what lies in none of them stands apart, at the end."""
    places = [layer.get("layer", number) for number, layer in enumerate(layers)]
    inside = [n for n, place in enumerate(places) if isinstance(place, int)]
    apart = [n for n in range(len(places)) if n not in inside]
    colours = SERIES if len(lines) > 1 else ((AFTER,) if "cosine" in name else (CUT,))
    with figure(5.0, 2.6) as drawn:
        axes: Any = drawn.subplots()
        for number, (own, values) in enumerate(lines.items()):
            style = {"color": colours[number % len(colours)], "marker": "o", "markersize": 4}
            known = [(n, values[n]) for n in inside if values[n] is not None]
            dashes = "-" if number < len(colours) else "--"
            axes.plot(*zip(*known, strict=True), label=short(own), linestyle=dashes, clip_on=False, **style)
            loose = [(n, values[n]) for n in apart if values[n] is not None]
            if loose:
                axes.plot(*zip(*loose, strict=True), linestyle="none", clip_on=False, **style)
        step = max(len(inside) // 10, 1)
        ticks = [(n, str(places[n])) for n in inside[::step]] + [(n, "rest") for n in apart]
        axes.set_xticks(*zip(*ticks, strict=True))
        axes.set_xlabel("layer")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        if len(lines) > 1:
            axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, columnspacing=1.2)
        tidy(axes)
        rows = [(place, *(values[n] for values in lines.values())) for n, place in enumerate(places)]
        caption = "Layer by layer." + "".join(f" The rest: {places[n]}." for n in apart)
        return plot(name, title, caption, drawn, Data(("layer", *lines), rows))
