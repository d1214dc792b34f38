"""How `merge` searches: what a candidate is measured by, and where the candidates are written down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypedDict  # pydantic refuses that of typing before Python 3.12

from prune import data
from prune.document import Document
from prune.errors import PruneError
from prune.evaluation import harness
from prune.evaluation.evaluate import evaluate
from prune.measure import compute_dtype
from prune.merging.merge import Merged, prepare
from prune.merging.search import search, space
from prune.model.model import Model
from prune.model.save import load
from prune.run import Run
from prune.steps._common import Positive, place

LOG = "candidates.jsonl"
SHARES = ("acc_norm", "acc", "exact_match", "f1")  # of right answers, as tasks call them


class Search(TypedDict, total=False):
    """What is looked for among merges."""

    weights: Annotated[int, Field(ge=0)]
    layers: Annotated[int, Field(ge=0)]
    metric: Literal["perplexity", "accuracy", "task"]
    task: str
    data: str
    field: str
    label: str
    split: str
    samples: Positive
    length: Annotated[int, Field(ge=2)]
    budget: Positive


def searched(
    run: Run,
    merged: Merged,
    document: Document,
    wanted: Search,
    settings: Mapping[str, Any],
) -> tuple[Document, list[int] | None]:
    """The config that measured best, and the order of layers (None: as they are). Writes down every candidate.

    `settings` are the options of `prepare` with which `merged` was made.
    """
    found_space = space(
        document,
        weights=wanted.get("weights", 1),
        layers=wanted.get("layers", 0),
        depth=merged.model.numbers["layers"],
    )
    budget = wanted.get("budget", 30)
    if wanted.get("metric") == "task":
        if "task" not in wanted:
            raise PruneError("name the task of lm-eval to measure candidates on", where="search")
        harness.check([wanted["task"]])
    elif "data" not in wanted:
        raise PruneError("name the data to measure candidates on", where="search")
    else:
        data.check(wanted["data"], split=wanted.get("split"))
    if run.dry:
        return document, None

    def measure(vector: list[float]) -> float:
        made = prepare(found_space.config(vector), **settings)
        path = found_space.path(vector)
        return _measured(run, made.model if path is None else made.stacked(path).model, wanted)

    with run.track("candidates", budget) as advance:
        tried: Callable[[], None] = advance
        found = search(
            found_space.start(),
            measure,
            budget=budget,
            seed=run.seed,
            bounds=found_space.bounds(),
            log=run.unfinished / LOG,
            tried=tried,
        )
    path = found_space.path(found.vector)
    run.record["search"] = {
        "metric": wanted.get("metric", "perplexity"),
        "best": {"parameters": found.vector, "value": found.value, "layers": path},
        "start": found.candidates[0]["value"],
        "candidates": [found_space.told(entry) for entry in found.candidates],
    }
    return found_space.config(found.vector), path


def _measured(run: Run, model: Model, wanted: Search) -> float:
    """A candidate's number, the lower the better: perplexity, or the share of wrong answers."""
    metric = wanted.get("metric", "perplexity")
    if metric == "task":
        return _wrong(run, model, wanted)
    options = {key: value for key, value in wanted.items() if key in ("field", "label", "split", "samples", "length")}
    quiet = {**place(run), "progress": None}
    found = evaluate(model, **{metric: wanted["data"]}, **options, seed=run.seed, **quiet)  # type: ignore[arg-type]
    value = found[metric]["model"]
    return float(value) if metric == "perplexity" else 1 - float(value["accuracy"])


def _wrong(run: Run, model: Model, wanted: Search) -> float:
    """The share of a task's questions that is answered wrong."""
    task = wanted["task"]
    module = load(model, device=run.device, dtype=compute_dtype(run.device, run.dtype))
    found = harness.run(module, model.tokenizer(), [task], limit=wanted.get("samples"), seed=run.seed)[task]
    name = next((name for name in SHARES if name in found), None)
    if name is None:
        raise PruneError(f"{task} gives none of {', '.join(SHARES)} to search by", where="search")
    return 1 - float(found[name])


def of_data(wanted: Search) -> str | None:
    """What tells the bytes that candidates are measured on from others."""
    return data.fingerprint(wanted["data"], split=wanted.get("split")) if "data" in wanted else None
