"""How `merge` searches: what a candidate is measured by, and where the candidates are written down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypedDict  # pydantic refuses that of typing before Python 3.12

from prune import data
from prune.document import Document
from prune.errors import PruneError
from prune.evaluation.evaluate import evaluate
from prune.merging.merge import Merged, prepare
from prune.merging.search import search, space
from prune.model.model import Model
from prune.run import Run
from prune.steps._common import Positive, place

LOG = "candidates.jsonl"


class Search(TypedDict, total=False):
    """What is looked for among merges."""

    weights: Annotated[int, Field(ge=0)]
    layers: Annotated[int, Field(ge=0)]
    metric: Literal["perplexity", "accuracy"]
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
    named: Mapping[str, Model],
    settings: Mapping[str, Any],
) -> tuple[Document, list[int] | None]:
    """The config that measured best, and the order of layers (None: as they are). Writes down every candidate."""
    found_space = space(
        document,
        weights=wanted.get("weights", 1),
        layers=wanted.get("layers", 0),
        depth=merged.model.numbers["layers"],
    )
    budget = wanted.get("budget", 30)
    if "data" not in wanted:
        raise PruneError("name the data to measure candidates on", where="search")
    data.check(wanted["data"], split=wanted.get("split"))
    if run.dry:
        return document, None

    def measure(vector: list[float]) -> float:
        made = prepare(found_space.config(vector), models=named, **settings)
        path = found_space.path(vector)
        return _measured(run, made.model if path is None else made.stacked(path).model, wanted)

    with run.track("candidates", budget) as advance:
        tried: Callable[[], None] = advance
        found = search(
            found_space.start(), measure, budget=budget, seed=run.seed, log=run.unfinished / LOG, tried=tried
        )
    path = found_space.path(found.vector)
    run.record["search"] = {
        "metric": wanted.get("metric", "perplexity"),
        "best": {"parameters": found.vector, "value": found.value, "layers": path},
        "start": found.candidates[0]["value"],
        "candidates": found.candidates,
    }
    return found_space.config(found.vector), path


def _measured(run: Run, model: Model, wanted: Search) -> float:
    """A candidate's number, the lower the better: perplexity, or the share of wrong answers."""
    metric = wanted.get("metric", "perplexity")
    options = {key: value for key, value in wanted.items() if key in ("field", "label", "split", "samples", "length")}
    quiet = {**place(run), "progress": None}
    found = evaluate(model, **{metric: wanted["data"]}, **options, seed=run.seed, **quiet)  # type: ignore[arg-type]
    value = found[metric]["model"]
    return float(value) if metric == "perplexity" else 1 - float(value["accuracy"])


def of_data(wanted: Search) -> str | None:
    """What tells the bytes that candidates are measured on from others."""
    return data.fingerprint(wanted["data"], split=wanted.get("split")) if "data" in wanted else None
