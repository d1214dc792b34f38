"""What tasks were scored by and on, in words and as numbers: no score means anything without."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

SUBJECTS = 45  # of KMMLU
Measured = Mapping[str, Any]


def is_kmmlu(task: str, found: Measured) -> bool:
    return task.split(",")[0] == "kmmlu" or "subjects" in found


def terms(task: str, found: Measured) -> dict[str, Any]:
    """Shots, questions, subjects and the majority's score, as far as they are known."""
    known = {"shots": found.get("shots"), "questions": questions(found)}
    if is_kmmlu(task, found):
        known |= {"subjects": len(found.get("subjects") or {}) or None, "subjects_in_all": SUBJECTS}
        known |= {name: found.get(name) for name in ("scorer", "error", "majority", "majority_answer")}
    return {name: value for name, value in known.items() if value is not None}


def questions(found: Measured) -> int | None:
    """How many were asked; of a score without the count, what its subjects hold."""
    if found.get("questions"):
        return int(found["questions"])
    return sum(own.get("questions", 0) for own in (found.get("subjects") or {}).values()) or None


def name(task: str, found: Measured) -> str:
    """KMMLU, 5-shot, 45 subjects, 35,030 questions (majority 30.5 %); any other task by its name."""
    if not is_kmmlu(task, found):
        return task
    own = terms(task, found)
    subjects = own.get("subjects")
    told = [
        f"{own['shots']}-shot" if "shots" in own else "",
        (f"{subjects} of {SUBJECTS} subjects" if subjects < SUBJECTS else f"{subjects} subjects") if subjects else "",
        f"{own['questions']:,} questions" if "questions" in own else "",
    ]
    majority = f" (majority {100 * own['majority']:.1f} %)" if "majority" in own else ""
    return ", ".join(["KMMLU", *filter(None, told)]) + majority


def percent(value: float | None, error: float | None = None) -> str:
    """A share, with its standard error where that is known."""
    if value is None:
        return ""
    return f"{100 * value:.1f}" + (f" \N{PLUS-MINUS SIGN} {100 * error:.1f} %" if error is not None else " %")


def rows(tasks: Mapping[str, Any], *, known: bool) -> Iterator[tuple[str, str, str, str]]:
    """(task, before, after, change) of every task; `known` False: the result is no longer the model that was scored."""
    before, after = tasks.get("before") or {}, tasks.get("after") or {}
    for task in {**before, **after}:
        one, other = before.get(task) or {}, (after.get(task) or {}) if known else {}
        either = other or one
        if is_kmmlu(task, either):
            first, last = one.get("micro"), other.get("micro")
            change = "" if first is None or last is None else f"{100 * (last - first):+.1f} points"
            texts = percent(first, one.get("error")), percent(last, other.get("error"))
            yield name(task, either), *texts, change
            continue
        for metric, value in either.items():
            if isinstance(value, float) and "stderr" not in str(metric):
                yield f"{task}, {metric}", _number(one, metric), _number(other, metric), _change(one, other, metric)


def _number(found: Measured, metric: str) -> str:
    value, error = found.get(metric), found.get(f"{metric}_stderr")
    if not isinstance(value, float):
        return ""
    return f"{value:.4f}" + (f" \N{PLUS-MINUS SIGN} {error:.4f}" if isinstance(error, float) else "")


def _change(before: Measured, after: Measured, metric: str) -> str:
    one, other = before.get(metric), after.get(metric)
    return f"{other - one:+.4f}" if isinstance(one, float) and isinstance(other, float) else ""
