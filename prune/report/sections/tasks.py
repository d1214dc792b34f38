"""Tasks before and after; KMMLU subject by subject beside the majority answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prune.report import scored
from prune.report.blocks import Block, Data, Facts, Plot, Prose, Rows, Section
from prune.report.drawing import AFTER, BEFORE, CUT, INK, figure, plot, short, tidy
from prune.report.table import Table

Measured = Mapping[str, Any]
THICK = 0.36  # of a subject's bar, as a share of its row


def section(facts: Facts) -> Section | None:
    found = facts.records("tasks")
    if not found:
        return None
    number, tasks = found[-1]
    before, after = tasks.get("before") or {}, tasks.get("after") or {}
    names = [name for name in {**before, **after} if name != "kmmlu"]
    blocks: list[Block] = []
    if rows := [row for name in names for row in _rows(name, before.get(name) or {}, after.get(name) or {})]:
        blocks.append(Rows(Table(("task", "metric", "before", "after", "change"), rows, frozenset({2, 3, 4}))))
    if "kmmlu" in after or "kmmlu" in before:
        blocks += _kmmlu(before.get("kmmlu") or {}, after.get("kmmlu") or {})
    return Section("tasks", f"Tasks (step {number})", blocks) if blocks else None


def _rows(task: str, before: Measured, after: Measured) -> list[tuple[str, ...]]:
    """A row for each metric that is a number; standard errors stand with their metric."""
    found: list[tuple[str, ...]] = []
    names = ("micro", "macro") if task.startswith("kmmlu") else tuple({**before, **after})
    for metric in names:
        one, other = before.get(metric), after.get(metric)
        if not isinstance(one if other is None else other, (int, float)):
            continue
        if task.startswith("kmmlu"):
            errors = [side.get("error") if metric == "micro" else None for side in (before, after)]
            shown = [scored.percent(value, error) for value, error in zip((one, other), errors, strict=True)]
            found.append((task, metric, *shown, points(one, other)))
            continue
        change = _signed(other - one, 4) if isinstance(one, (int, float)) and isinstance(other, (int, float)) else ""
        found.append((task, metric, _number(one), _number(other), change))
    return found


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "" if value is None else str(value)


def _kmmlu(before: Measured, after: Measured) -> list[Block]:
    either = after or before
    shots = either.get("shots", 0)
    subjects = either.get("subjects") or {}
    questions = sum(entry.get("questions", 0) for entry in subjects.values())
    said = f"KMMLU, {len(subjects)} subjects, {questions:,} questions, {shots}-shot."
    if either.get("error") is not None:
        said += " Beside micro stands its standard error."
    if (majority := either.get("majority")) is not None:
        said += f" Always giving the most frequent answer would score {scored.percent(majority)};"
        said += " a score below that says nothing."
    sides = (before, after)
    micro = [scored.percent(_of(side, "micro"), _of(side, "error")) for side in sides]
    lines = [("micro", *micro, points(_of(before, "micro"), _of(after, "micro")))]
    rows = [("macro", _of(before, "macro"), _of(after, "macro"))]
    rows += [(group, _group(before, group), _group(after, group)) for group in either.get("groups") or {}]
    lines += [(name, scored.percent(one), scored.percent(other), points(one, other)) for name, one, other in rows]
    if majority is not None:
        lines.append(("majority answer", scored.percent(majority), scored.percent(majority), ""))
    blocks: list[Block] = [Prose(said)]
    blocks.append(Rows(Table(("KMMLU", "before", "after", "change"), lines, frozenset({1, 2, 3}))))
    grouped = _grouped(either)
    blocks += [_bars(name, own, before, after, majority) for name, own in grouped.items() if own]
    table = [_subject(name, before, after) for own in grouped.values() for name in own]
    head = ("subject", "questions", "before", "after", "change")
    blocks.append(Rows(Table(head, table, frozenset({1, 2, 3, 4})), "All subjects as a table"))
    return blocks


def _of(side: Measured, name: str) -> float | None:
    value = side.get(name)
    return float(value) if isinstance(value, (int, float)) else None


def _group(side: Measured, name: str) -> float | None:
    entry = (side.get("groups") or {}).get(name)
    if isinstance(entry, Mapping):
        return next((_of(entry, key) for key in ("micro", "accuracy", "macro") if _of(entry, key) is not None), None)
    return float(entry) if isinstance(entry, (int, float)) else None


def _grouped(either: Measured) -> dict[str, list[str]]:
    """Group -> its subjects, where the groups name them; all subjects as one group otherwise."""
    subjects = either.get("subjects") or {}
    found: dict[str, list[str]] = {}
    for name, entry in (either.get("groups") or {}).items():
        listed = entry.get("subjects") if isinstance(entry, Mapping) else None
        if isinstance(listed, (list, dict)):
            found[name] = [subject for subject in listed if subject in subjects]
    for subject, entry in subjects.items():
        if not any(subject in own for own in found.values()):
            found.setdefault(str(entry.get("group", "All subjects")), []).append(subject)
    return found


def accuracy(side: Measured, subject: str) -> float | None:
    entry = (side.get("subjects") or {}).get(subject)
    return entry["correct"] / entry["questions"] if entry and entry.get("questions") else None


def _subject(name: str, before: Measured, after: Measured) -> tuple[str, ...]:
    one, other = accuracy(before, name), accuracy(after, name)
    entry = {**((before.get("subjects") or {}).get(name) or {}), **((after.get("subjects") or {}).get(name) or {})}
    return (name, f"{entry.get('questions', 0):,}", scored.percent(one), scored.percent(other), points(one, other))


def points(before: float | None, after: float | None) -> str:
    """The change in percentage points."""
    return "" if before is None or after is None else _signed(100 * (after - before), 1)


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _bars(group: str, subjects: list[str], before: Measured, after: Measured, majority: Any) -> Plot:
    """Two bars for each subject, the original's above."""
    order = sorted(subjects, key=lambda name: (accuracy(after, name) or accuracy(before, name) or 0, name))
    pairs = [(accuracy(before, name), accuracy(after, name)) for name in order]
    with figure(5.0, 0.9 + 0.27 * len(order)) as drawn:
        axes: Any = drawn.subplots()
        for column, (label, colour) in enumerate((("before", BEFORE), ("after", AFTER))):
            known = [(row, 100 * value) for row, pair in enumerate(pairs) if (value := pair[column]) is not None]
            if known:
                places, widths = zip(*known, strict=True)
                shift = THICK / 2 if column == 0 else -THICK / 2
                axes.barh([place + shift for place in places], widths, height=THICK, color=colour, label=label)
        if majority is not None:
            axes.axvline(100 * majority, color=CUT, linewidth=1.3, linestyle=(0, (3, 3)), label="majority answer")
        names = [short(name.replace("_", " ").replace("-", " ")) for name in order]
        axes.set_yticks(range(len(order)), names, color=INK)
        axes.set_ylim(-0.6, len(order) - 0.4)
        axes.set_xlabel("correct, %")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, columnspacing=1.2)
        tidy(axes, grid="x")
        slug = "".join(c if c.isalnum() and c.isascii() else "-" for c in group.lower())[:40]
        rows = [(name, *pair, majority) for name, pair in zip(order, pairs, strict=True)]
        data = Data(("subject", "before", "after", "majority"), rows)
        return plot(f"kmmlu-{slug}", f"KMMLU: {group}", "By subject, sorted by the score after.", drawn, data)
