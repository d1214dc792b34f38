"""What `prune evaluate` is asked for, as `prune.evaluate` takes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import prune
from prune.errors import PruneError
from prune.evaluation import tasks
from prune.evaluation.benchmark import graphs_in

FOUND = "found"


def arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments, those of speed and of KMMLU put together. PruneError for one that has nothing to act on."""
    given = dict(options)
    batch, length = (list(given.pop(name)) for name in ("batch", "prompt_length"))
    timed = {name: values for name, values in (("batch", batch), ("length", length)) if values}
    if timed and not given["speed"]:
        raise PruneError("is for --speed", where="--batch" if batch else "--prompt-length")
    memory = given.pop("memory")
    given["speed"] = {**timed, "memory": memory} if given["speed"] else False
    given["kmmlu"] = _questions(given.pop("folder"), list(given.pop("subjects")), given.pop("scorer"))
    for name in ("tasks", "generate"):
        given[name] = list(given[name])
    given["shots"] = list(given["shots"]) or None
    return given


def _questions(folder: str | None, subjects: list[str], scorer: str | None) -> tasks.Kmmlu | None:
    named: Any = {"data": folder, "subjects": FOUND if FOUND in subjects else subjects, "scorer": scorer}
    questions: Any = {name: value for name, value in named.items() if value}
    return questions or None


def opened(
    model: str, revision: str | None, beside: str | None, given: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, list[Path]]]:
    """Models by name, and the exported graphs that lie in their folders. PruneError for tasks that cannot be scored."""
    names = {"model": model} if beside is None else {"before": beside, "after": model}
    graphs = {name: paths for name, source in names.items() if given["speed"] and (paths := graphs_in(Path(source)))}
    models = {
        name: prune.open(source, revision=revision if source == model else None)
        for name, source in names.items()
        if not (name in graphs and not list(Path(source).glob("*.safetensors")))  # an export alone
    }
    wanted = tasks.listed(given["tasks"], given["kmmlu"])
    for one in models.values():
        if wanted:
            tasks.check(one, wanted, shots=given["shots"], questions=given["kmmlu"])
    if len(models) < len(names) and (wanted or given["generate"] or given["perplexity"] or given["accuracy"]):
        raise PruneError("is an export, which only --speed measures", where=model)
    return models, graphs
