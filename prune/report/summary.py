"""What a run removed and what that did to the model, as rows of text, from the records its steps left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from prune.report import course, evaluated
from prune.report import exported as words
from prune.report.table import Table, size

RISING = frozenset({"accuracy"})  # of what changes more of these is better; of everything else less is

NOISE = "within noise"

MEASURED = {  # what a step says where it measured it, by the name that people give it
    "perplexity": ("perplexity",),
    "accuracy": ("accuracy",),
    "latency": ("speed",),
    "the score of tasks": ("tasks", "kmmlu"),
}

Records = Sequence[dict[str, Any]]  # {"word", "options", "record", "warnings"} per step


class Change(NamedTuple):
    """One quantity before and after: numbers for machines; `rows` makes text of it. `after` None: it is not known."""

    name: str
    before: float
    after: float | None
    ratio: float | None = None  # after / before, where it was measured as such
    unsure: bool = False  # the quartiles of the ratio lie on both sides of 1


def removed(steps: Records) -> list[tuple[str, str]]:
    """What went, and how much: ("channels", "128 of 512 in each of 6 layers"), one pair for each kind and step."""
    return [pair for step in steps for pair in step["record"].get("removed", {}).items()]


def changes(steps: Records, timings: Sequence[dict[str, Any]] = ()) -> list[Change]:
    """Parameters, bytes, FLOPs a token, perplexity, accuracy, loss and latency (seconds), where measured.

    What was measured before a later step changed the model has no `after`: it is of another model.
    """
    found = [_from_first_to_last(name, steps) for name in ("parameters", "bytes", "flops")]
    measured = [number for number, step in enumerate(steps) if step["record"].get("perplexity")]
    if measured:
        said = steps[measured[-1]]["record"]["perplexity"]
        if None not in (said.get("before"), said.get("after")):
            found.append(_measured("perplexity", said["before"], said["after"], measured[-1], steps))
    asked = [number for number, step in enumerate(steps) if step["record"].get("accuracy")]
    if asked:
        said = steps[asked[-1]]["record"]["accuracy"]
        for name in ("accuracy", "loss"):
            pair = said["before"][name], said["after"][name]
            found.append(_measured(name, *pair, asked[-1], steps))
    timed = [number for number, timing in enumerate(timings) if timing.get("latency_seconds")]
    if timed:
        said = timings[timed[-1]]
        before, after = said["latency_seconds"]
        latency = _measured("latency", before, after, timed[-1], steps, said.get("latency_ratio"))
        found.append(latency._replace(unsure=unsure(said.get("speed", {}).get("prefill", {}).get("spread"))))
    return [change for change in found if change]


def unsure(spread: Sequence[float] | None) -> bool:
    """Whether the quartiles of a ratio lie on both sides of 1, so that it is neither gain nor cost."""
    return spread is not None and spread[0] <= 1 <= spread[1]


def _measured(
    name: str, before: float, after: float, number: int, steps: Records, ratio: float | None = None
) -> Change:
    return Change(name, before, None) if changed_after(number, steps) else Change(name, before, after, ratio)


def changed_after(number: int, steps: Records) -> int | None:
    """The first step after `number` that changed the model, both counted from 0."""
    later = range(number + 1, len(steps))
    return next((other for other in later if steps[other]["record"].get("saved_as")), None)


def overtaken(steps: Records) -> list[str]:
    """What was measured of a model that a later step changed, and not again, a line each."""
    said = []
    for name, measures in MEASURED.items():
        said_of = [{**step.get("options", {}), **step["record"]} for step in steps]
        asked = [number for number, own in enumerate(said_of) if any(own.get(measure) for measure in measures)]
        changed = changed_after(asked[-1], steps) if asked else None
        if changed is not None:
            said.append(
                f"step {asked[-1] + 1} measures {name} before step {changed + 1} changes the model, "
                "so that of the result is not known; evaluate it last"
            )
    return said


def _from_first_to_last(name: str, steps: Records) -> Change | None:
    pairs = [step["record"][name] for step in steps if step["record"].get(name)]
    return Change(name, pairs[0][0], pairs[-1][1]) if pairs else None


def rows(found: Sequence[Change]) -> list[tuple[str, str, str, str]]:
    """Changes as text: name, before, after, change."""
    return [(c.name, _text(c.name, c.before), _text(c.name, c.after), _percent(c)) for c in found]


def _text(name: str, value: float | None) -> str:
    if value is None:
        return ""
    if name == "latency":
        return f"{value * 1000:.1f} ms"
    if name == "perplexity":
        return f"{value:.2f}"
    if name in ("accuracy", "loss"):
        return f"{value:.1%}" if name == "accuracy" else f"{value:.3f}"
    return size(value) if name == "bytes" else f"{value:,.0f}"


def _percent(change: Change) -> str:
    if change.after is None:
        return ""
    if change.unsure:
        return NOISE
    ratio = change.ratio or (change.after / change.before if change.before else None)
    return f"{(ratio - 1) * 100:+.1f} %" if ratio else ""


def notes(steps: Records) -> list[str]:
    """What a person should know besides: how the result was saved, and how exactly masked equals sliced."""
    said = []
    for number, step in enumerate(steps, 1):
        record = step["record"]
        if proof := record.get("proof"):
            worst, tolerance = proof["max_relative_difference"], proof["tolerance"]
            said.append(f"proof of step {number}: masked equals sliced to {worst:.1e} (allowed: {tolerance:.0e})")
        said += [f"step {number}: {note}" for note in record.get("notes", [])]
    return said + overtaken(steps)


def blocks(
    output: object,
    steps: Records,
    timings: Sequence[dict[str, Any]],
    remarks: Sequence[str] = (),
    runtimes: Sequence[dict[str, str]] = (),
) -> list[Table | str]:
    """What `apply` and `check` print: what changed, what loads the result, then the proofs and where the files are."""
    gone = [(f"{kind} removed", "", "", how) for kind, how in removed(steps)]
    table = Table(("", "before", "after", "change"), [*gone, *rows(changes(steps, timings))], frozenset({1, 2}))
    last = f"files: {output}" if output else "checked: nothing was run or written"
    loads = [loading(runtimes)] if runtimes else loaders(steps)
    line = course.table(steps)
    found = [*([line] if line else []), *evaluated.steps(steps, timings)]
    return [*([table] if table.rows else []), *found, *notes(steps), *needed(steps), *loads, *remarks, last]


def loading(runtimes: Sequence[dict[str, str]]) -> Table:
    """Which runtime will load the result, with what, and why not."""
    rows = [tuple(entry[name] for name in ("runtime", "verdict", "why")) for entry in runtimes]
    return Table(("runtime", "", "with, or because"), rows)


def needed(steps: Records) -> list[str]:
    """After a check: what the run will take, as far as shapes tell."""
    needs = [step["record"]["needs"] for step in steps if step["record"].get("needs")]
    if not needs:
        return []
    memory, disk = max(need["memory"] for need in needs), sum(need["disk"] for need in needs)
    seconds = sum(need["seconds"] for need in needs)
    return [f"needs about: {size(memory)} of memory, {size(disk)} of disk, {duration(seconds)} of arithmetic"]


def duration(seconds: float) -> str:
    """Seconds as people say them: 14 s, 3 min."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def loaders(steps: Records) -> list[str]:
    """What loads the result."""
    types = [step["record"]["saved_as"] for step in steps if step["record"].get("saved_as")]
    if not types:
        return []
    if types[-1].startswith("prune_"):
        return [f"loads with: prune.load, or the Auto classes after `import prune` ({types[-1]}: layers differ)"]
    return [f"loads with: stock transformers ({types[-1]})"]


def as_data(state: str, output: object, steps: Records, timings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The same for machines."""
    return {
        "state": state,
        "output": str(output) if output else None,
        "changes": {change.name: change._asdict() for change in changes(steps, timings)},
        "steps": list(steps),
        "timings": list(timings),
    }


def inspection(found: dict[str, Any]) -> list[Table | str]:
    """What `inspect` prints."""
    sizes = ", ".join(
        f"{name} {found[name]}" for name in ("layers", "width", "heads", "kv_heads", "head_dim", "channels")
    )
    head = ("kind", "groups", "units in each", "parameters", "share", "share of FLOPs", "what a unit is")
    lines = [_inspected(row) for row in found["groups"]]
    return [
        f"{found['source']}: {found['architecture']}, {found['dtype']}, {sizes}",
        f"{found['parameters']:,} parameters, {size(found['bytes'])}, {found['flops_per_token']:,} FLOPs a token",
        Table(head, lines, frozenset({1, 2, 3, 4, 5})),
    ]


def _inspected(row: dict[str, Any]) -> tuple[str, ...]:
    shares = (f"{row['parameters_share']:.1%}", f"{row['flops_share']:.1%}")
    return (row["kind"], str(row["groups"]), _span(row["units"]), f"{row['parameters']:,}", *shares, row["meaning"])


def _span(units: int | list[int]) -> str:
    return str(units) if isinstance(units, int) else f"{min(units)} to {max(units)}"


def exported(found: dict[str, Any], out: object) -> list[Table | str]:
    """What `export` prints: the files with their sizes, and the other things its record says."""
    sizes = found.get("files", {})
    lines = [(name, size(count)) for name, count in sizes.items()] if isinstance(sizes, dict) else []
    rest = [f"{name}: {value}" for name, value in words.rows(found)]
    return [*([Table(("file", "size"), lines, frozenset({1}))] if lines else []), *rest, f"files: {out}"]


def merged(found: dict[str, Any], out: object | None) -> list[Table | str]:
    """What `merge` prints: how, from what, how large, what each layer's changes are, and where (None: nowhere)."""
    record, needs = found["merge"], found["needs"]
    lines = [("method", record["method"]), ("inputs", ", ".join(record["inputs"]))]
    lines += [("parameters", f"{found['parameters']:,}"), ("bytes", size(found["bytes"]))]
    lines += [("loads with", f"stock transformers ({found['saved_as']})")] if "prune_" not in found["saved_as"] else []
    wanted = f"needs about: {size(needs['memory'])} of memory, {size(needs['disk'])} of disk"
    shown: list[Table | str] = [Table(("what", "value"), lines), wanted]
    if rows := record.get("layers"):
        models = list(rows[0]["delta_norm"])
        head = ("layer", *(f"norm of change, {model}" for model in models), "cosine", "signs differ")
        body = [
            (
                str(row["layer"]),
                *(f"{row['delta_norm'].get(model, 0.0):.4g}" for model in models),
                "" if row["cosine"] is None else f"{row['cosine']:.3f}",
                f"{row['sign_conflicts']:.1%}",
            )
            for row in rows
        ]
        shown.insert(1, Table(head, body, frozenset(range(1, len(head)))))
    return shown if out is None else [*shown, f"files: {out}"]


def flat(value: Any) -> str:
    """A value, or the values of a mapping, on one line."""
    return ", ".join(str(inner) for inner in value.values() if inner) if isinstance(value, dict) else str(value)


def sensitivity(points: Sequence[dict[str, Any]]) -> list[Table | str]:
    """A row for each kind and layer: the KL divergence at each share of units removed; "-" where none was measured."""
    shares = sorted({point["removed"] / point["units"] for point in points if point["units"] > 1})
    rows: dict[tuple[str, int], dict[float, float]] = {}
    for point in points:
        share = point["removed"] / point["units"]
        rows.setdefault((point["kind"], point["layer"]), {})[share] = point["divergence"]
    columns = [*shares, 1.0]
    cells = [
        (kind, str(layer), *(f"{own[share]:.3g}" if share in own else "-" for share in columns))
        for (kind, layer), own in rows.items()
    ]
    head = ("kind", "layer", *(f"{100 * share:.0f} %" for share in shares), "whole")
    explained = "KL divergence from the whole model, nats per position, as each group loses that share of its units"
    return [Table(head, cells, frozenset(range(1, len(head)))), explained]
