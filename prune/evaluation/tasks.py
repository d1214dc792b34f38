"""Tasks by name: KMMLU by our own scorer or by lm-eval, every other one by lm-eval."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import TypedDict  # pydantic refuses that of typing before Python 3.12

from prune.errors import PruneError
from prune.evaluation import harness, kmmlu
from prune.labels import task as kind
from prune.model.model import Model
from prune.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

KMMLU, SHOTS = "kmmlu", 5
USUAL = 1000  # questions of a task of lm-eval, more or less


class Kmmlu(TypedDict, total=False):
    """Which questions of KMMLU, and who scores them."""

    data: str
    subjects: str | list[str]
    scorer: Literal["own", "lm-eval"]


def listed(tasks: str | Sequence[str] | None, questions: Kmmlu | None) -> list[str]:
    """The tasks asked for; questions of KMMLU alone ask for it too."""
    names = [tasks] if isinstance(tasks, str) else list(tasks or ())
    return list(dict.fromkeys([*names, *([KMMLU] if questions is not None else [])]))


def check(model: Model, tasks: Sequence[str], *, shots: int | Sequence[int] | None, questions: Kmmlu | None) -> None:
    """PruneError for what cannot be scored: another kind of model, an unknown task or subject, a missing file."""
    if kind(model) not in ("next token", "text pairs"):
        raise PruneError(f"tasks are for language models, and this is one of {kind(model)}", where="tasks")
    given = questions or {}
    if KMMLU in tasks:
        if kind(model) != "next token":
            raise PruneError("kmmlu is for decoders; this is an encoder with a decoder", where="tasks")
        source = given.get("data", kmmlu.HUB)
        own: dict[str, Any] = {"subjects": given.get("subjects"), "shots": max(_shots(shots) or [SHOTS])}
        try:
            kmmlu.check(source, **own)
            if kmmlu.is_local(source):  # the solved questions and the first that is asked
                kmmlu.read(source, limit=1, **own)
        except PruneError as error:
            raise error.at("kmmlu") from None
    elsewhere = [name for name in tasks if name != KMMLU]
    if elsewhere or given.get("scorer") == "lm-eval":
        harness.check(elsewhere)


def asked(
    tasks: Sequence[str], *, shots: int | Sequence[int] | None, limit: int | None, questions: Kmmlu | None
) -> int:
    """About how many questions go through a model, the solved ones among them; of lm-eval's tasks a guess."""
    given = questions or {}
    whole = given.get("scorer") == "lm-eval"  # which reads the solved ones, and each of four answers, anew
    total = 0
    numbers: list[int | None] = [*_shots(shots)] or [None]
    for number in numbers:
        if KMMLU in tasks:
            solved = SHOTS if number is None else number
            subjects = kmmlu.check(given.get("data", kmmlu.HUB), subjects=given.get("subjects"), shots=0)
            each = min(limit or kmmlu.EACH, kmmlu.EACH)
            total += len(subjects) * (4 * each * (1 + solved) if whole else each + solved)
        others = len([name for name in tasks if name != KMMLU])
        total += others * (limit or USUAL) * (1 + (number or 0))
    return total


def score(
    module: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    shots: int | Sequence[int] | None = None,
    limit: int | None = None,
    questions: Kmmlu | None = None,
    batch_size: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, dict[str, Any]]:
    """Task -> what a model scores. Of several `shots` the largest stands under the task's own name.

    `limit` is the most questions of each task or subject; `shots` left out are 5 for KMMLU, and what others say.
    """
    found: dict[str, dict[str, Any]] = {}
    how: dict[str, Any] = {"limit": limit, "batch_size": batch_size, "seed": seed}
    elsewhere = [name for name in tasks if name != KMMLU]
    numbers: list[int | None] = [*_shots(shots)] or [None]
    for number in numbers:
        said = "" if number is None or number == max(_shots(shots)) else f", {number}-shot"
        own: dict[str, dict[str, Any]] = {}
        if KMMLU in tasks:
            asked = SHOTS if number is None else number
            own[KMMLU] = _kmmlu(module, tokenizer, questions or {}, asked, progress=progress, **how)
        if elsewhere:
            own |= harness.run(module, tokenizer, elsewhere, shots=number, **how)
        found |= {name + said: values for name, values in own.items()}
    return found


def _kmmlu(
    module: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Kmmlu,
    shots: int,
    *,
    limit: int | None,
    batch_size: int,
    seed: int,
    progress: Progress | None,
) -> dict[str, Any]:
    source = questions.get("data", kmmlu.HUB)
    subjects = kmmlu.read(source, subjects=questions.get("subjects"), shots=shots, limit=limit)
    how: dict[str, Any] = {"shots": shots, "batch_size": batch_size}
    if questions.get("scorer") == "lm-eval":
        found = harness.kmmlu(module, tokenizer, subjects, seed=seed, **how)
    else:
        found = kmmlu.kmmlu(module, tokenizer, subjects, progress=progress, **how)
    return {"data": source, "scorer": questions.get("scorer", "own"), **found}


def _shots(shots: int | Sequence[int] | None) -> list[int]:
    return [] if shots is None else [shots] if isinstance(shots, int) else sorted(set(shots), reverse=True)


def fingerprint(questions: Kmmlu) -> Any:
    """What tells the questions from others: the hashes of local files, or the Hub id; and lm-eval's version if it
    scores them."""
    source, subjects = questions.get("data", kmmlu.HUB), questions.get("subjects")
    found = kmmlu.fingerprint(source, kmmlu.check(source, subjects=subjects, shots=0))
    return [f"lm-eval {_version()}", found] if questions.get("scorer") == "lm-eval" else found


def scorer(tasks: str | Sequence[str]) -> str | None:
    """The version of lm-eval where it decides what comes out."""
    return _version() if [name for name in listed(tasks, None) if name != KMMLU] else None


def _version() -> str | None:
    try:
        return version("lm_eval")
    except ModuleNotFoundError:
        return None
