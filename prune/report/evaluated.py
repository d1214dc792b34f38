"""What `evaluate` found, as tables: of one model, or of several side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prune.report import scored
from prune.report.table import Table, size

Values = Mapping[str, Any]
TERMS = {  # what a number was measured on stands beside it
    "perplexity": ("data", "documents", "length", "stride", "tokens"),
    "accuracy": ("data", "task", "labels"),
}
STATED = ("batch", "length", "new", "runtime", "device", "threads", "rounds")  # beside a time


def evaluation(found: Values) -> list[Table | str]:
    """What `prune evaluate` prints."""
    names = list(found["parameters"]) or list(next(iter(found["speed"].values())))[:1]
    rows = [("parameters", *(f"{found['parameters'][name]:,}" for name in found["parameters"]))]
    rows.append(("bytes", *(size(found["bytes"][name]) for name in found["bytes"])))
    rows.append(("FLOPs a token", *(f"{found['flops'][name]:,}" for name in found["flops"])))
    blocks: list[Table | str] = []
    if own := found.get("perplexity"):
        rows.append(("perplexity", *(f"{own[name]:.3f}" for name in names)))
        blocks.append(f"perplexity of {stated(own, *TERMS['perplexity'])}")
    if own := found.get("accuracy"):
        rows.append(("accuracy", *(f"{own[name]['accuracy']:.1%}" for name in names)))
        rows.append(("loss", *(f"{own[name]['loss']:.3f}" for name in names)))
        blocks.append(f"accuracy of {stated(own, *TERMS['accuracy'])}")
    table = Table(("", *names), rows, frozenset(range(1, 1 + len(names))))
    return [*([table] if found["parameters"] else []), *blocks, *tables(found, names), *found.get("warnings", [])]


def steps(records: Sequence[Values], timings: Sequence[Values]) -> list[Table | str]:
    """What `prune apply` prints of the last steps that measured, scored tasks, timed, or had texts written."""
    blocks: list[Table | str] = []
    for key, names in TERMS.items():
        if asked := [step["record"][key] for step in records if step["record"].get(key)]:
            blocks.append(f"{key} of {stated(asked[-1], *names)}")
    for key in ("tasks", "speed", "generations"):
        held = timings if key == "speed" else [step["record"] for step in records]
        if known := [one[key] for one in held if one.get(key)]:
            blocks += tables({key: known[-1]}, ("before", "after"), everything=False)
    return blocks


def stated(found: Values, *names: str) -> str:
    """What a number was measured on, in words."""
    said = [(name, found[name]) for name in names if name in found]
    return ", ".join(
        " ".join(str(value) for value in own.values()) if isinstance(own, Mapping) else f"{name} {own}"
        for name, own in said
    )


def tables(found: Values, names: Sequence[str], *, everything: bool = True) -> list[Table | str]:
    """Tasks, speed and generations; with `everything` KMMLU's subjects too. `names` are the models'."""
    tasks = found.get("tasks") or {}
    known = list(dict.fromkeys(task for name in names for task in tasks.get(name, {})))
    blocks: list[Table | str] = []
    plain = [task for task in known if not _is_kmmlu(tasks, task)]
    if plain:
        blocks.append(_scores(tasks, plain, names))
    for task in known:
        if _is_kmmlu(tasks, task):
            blocks += _kmmlu(
                task, {name: tasks[name][task] for name in names if task in tasks.get(name, {})}, everything
            )
    if found.get("speed"):
        blocks.append(_speed(found["speed"], names))
    if found.get("generations"):
        rows = [tuple(str(one.get(column, "")) for column in ("prompt", *names)) for one in found["generations"]]
        blocks.append(Table(("prompt", *names), rows))
    return blocks


def _is_kmmlu(tasks: Values, task: str) -> bool:
    return any("subjects" in own.get(task, {}) for own in tasks.values())


def _scores(tasks: Values, known: Sequence[str], names: Sequence[str]) -> Table:
    rows = []
    for task in known:
        sides = [tasks.get(name, {}).get(task, {}) for name in names]
        metrics = [metric for metric in dict.fromkeys(key for side in sides for key in side) if "stderr" not in metric]
        for metric in metrics:
            rows.append((task, metric, *(_score(side, metric) for side in sides)))
    return Table(("task", "metric", *names), rows, frozenset(range(2, 2 + len(names))))


def _score(side: Values, metric: str) -> str:
    value, error = side.get(metric), side.get(f"{metric}_stderr")
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:.4f}" + (f" ± {error:.4f}" if isinstance(error, float) else "")


def _kmmlu(task: str, sides: Mapping[str, Values], everything: bool) -> Iterator[Table | str]:
    one = next(iter(sides.values()))
    yield (
        f"{task}: {one['shots']}-shot, {len(one['subjects'])} subjects and {one['questions']:,} questions of"
        f" {one['data']}; always answering {one['majority_answer']} scores {one['majority']:.1%}"
    )
    head = ("", "questions", *sides)
    right = frozenset(range(1, len(head)))
    rows = [(f"all, {name}", f"{one['questions']:,}", *_shares(sides, name)) for name in ("micro", "macro")]
    for group, own in one["groups"].items():
        within = {name: side["groups"][group] for name, side in sides.items()}
        rows += [(f"{group}, {name}", f"{own['questions']:,}", *_shares(within, name)) for name in ("micro", "macro")]
    rows.append(("majority answer", f"{one['questions']:,}", *_shares(sides, "majority")))
    yield Table(head, rows, right)
    if everything:
        yield Table(("subject", *head[1:]), [_subject(name, sides) for name in one["subjects"]], right)


def _shares(sides: Mapping[str, Values], name: str) -> list[str]:
    errors = [side.get("error") if name == "micro" else None for side in sides.values()]
    return [scored.percent(side[name], error) for side, error in zip(sides.values(), errors, strict=True)]


def _subject(name: str, sides: Mapping[str, Values]) -> tuple[str, ...]:
    found = [side["subjects"][name] for side in sides.values()]
    return (name, f"{found[0]['questions']:,}", *(f"{own['correct'] / own['questions']:.1%}" for own in found))


def _speed(found: Mapping[str, Values], names: Sequence[str]) -> Table:
    ratios = ["ratio"] if any("ratio" in own for own in found.values()) else []
    rows = []
    for quantity, own in found.items():
        values = [_text(quantity, own[name]) if name in own else "" for name in names]
        compared = [f"{own['ratio']:.3f}" if "ratio" in own else "" for _ in ratios]
        how = ", ".join(f"{key} {own['of'][key]}" for key in STATED if key in own["of"])
        rows.append((quantity, *values, *compared, _spread(quantity, own), how))
    head = ("speed", *names, *ratios, "quartiles", "measured with")
    return Table(head, rows, frozenset(range(1, len(head) - 1)))


def _spread(quantity: str, own: Values) -> str:
    if "spread" not in own:
        return ""
    low, high = (f"{value:.3f}" if "ratio" in own else _text(quantity, value) for value in own["spread"])
    return f"{low} to {high}"


def _text(quantity: str, value: float) -> str:
    if quantity.startswith("memory"):
        return size(value)
    return f"{value:,.1f} tokens/s" if quantity.startswith("decode") else f"{value * 1000:.1f} ms"
