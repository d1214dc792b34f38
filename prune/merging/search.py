"""Searching merge parameters, and the order of layers, for what measures best (https://arxiv.org/abs/2403.13187).

CMA-ES from the library `cma` proposes, a measurement disposes; every candidate is written down, and a search that was
stopped goes on from what is written.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from prune.document import Document
from prune.errors import PruneError, need
from prune.merging.block import parameters
from prune.merging.methods import method, names
from prune.merging.parse import parse

STEP = 0.25  # of a first proposal, where weights go from 0 to 1
WORST = 1e100  # what CMA-ES is told of a candidate that has no measurement: finite, or it stops
IN, OUT, BORDER = 0.75, 0.25, 0.5  # of a layer's variable: there, not there, and what divides the two


@dataclass(frozen=True)
class Space:
    """What is searched: `points` weights over the layers for each of `inputs`, then `repeat` passes over `layers`."""

    document: Document
    parameter: str
    points: int
    inputs: int
    layers: int
    repeat: int

    def start(self) -> list[float]:
        """The first candidate: the config's own numbers, else all inputs alike, and each layer once in its place."""
        path = [IN if place < self.layers else OUT for place in range(self.layers * self.repeat)]
        return [number for row in self._rows() for number in row] + path

    def bounds(self) -> tuple[float, float]:
        """What candidates lie between: 0 and 1, or as far as the config's own numbers go."""
        numbers = [number for row in self._rows() for number in row]
        return min([0.0, *numbers]), max([1.0, *numbers])

    def _rows(self) -> list[list[float]]:
        """The weights of each input over the layers, at the start."""
        if not self.inputs:
            return []
        alike = 0.5 if self.parameter == "t" else 1.0 / self.inputs
        return [_along(setting, self.points, alike) for setting in _own(self.document.value, self.parameter)]

    def config(self, vector: Sequence[float]) -> Document:
        """The merge config with a candidate's weights in it."""
        value = copy.deepcopy(dict(self.document.value))
        rows = [
            [round(number, 6) for number in vector[place * self.points : (place + 1) * self.points]]
            for place in range(self.inputs)
        ]
        setting: list[Any] = [row[0] if len(row) == 1 else row for row in rows]
        if self.parameter == "t" and setting:
            for scope in (*(value.get("slices") or ()), *(value.get("modules") or {}).values()):
                for inner in (scope, *(scope.get("slices") or ())):
                    (inner.get("parameters") or {}).pop("t", None)  # it would count for more
            value["parameters"] = {**(value.get("parameters") or {}), "t": setting[0]}
            setting = []
        for (entry, _), own in zip(_entries(value) if setting else (), setting, strict=True):
            entry["parameters"] = {**(entry.get("parameters") or {}), self.parameter: own}
        return replace(self.document, value=value)

    def told(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """A candidate for the record: number, value, the weights of each input over the layers, the layers in order."""
        vector = entry["parameters"]
        rows = [list(vector[place * self.points : (place + 1) * self.points]) for place in range(self.inputs)]
        return {**entry, "weights": rows, "layers": self.path(vector)}

    def path(self, vector: Sequence[float]) -> list[int] | None:
        """The layers of a candidate, in order; None where their order is not searched."""
        if not self.repeat:
            return None
        own = vector[self.points * self.inputs :]
        return [place % self.layers for place, number in enumerate(own) if number > BORDER] or [0]


def space(document: Document, *, weights: int, layers: int, depth: int) -> Space:
    """What a config leaves to search. `layers` is how often each of `depth` layers may stand; 0 leaves them alone."""
    taken = parameters(method(document.value["merge_method"]))
    name = next((name for name in ("weight", "t") if name in taken), "")
    if weights and not name:
        raise PruneError(f"{document.value['merge_method']} has no weights to search", where="search")
    inputs = (1 if name == "t" else sum(1 for _ in _entries(document.value))) if weights else 0
    found = Space(document, name, weights, inputs, depth, layers)
    if not found.start():
        raise PruneError("give weights or layers at least 1, or there is nothing to search", where="search")
    return found


def started(document: Document, *, weights: int) -> Document:
    """The config as a search of weights starts from it: those that it lacks are filled in."""
    parse(document, names())
    if not weights:
        return document
    found = space(document, weights=weights, layers=0, depth=0)
    return found.config(found.start())


def _entries(value: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], list[Mapping[str, Any]]]]:
    """Every input of a config that has a weight, and what holds settings for it, what counts most first."""
    base = value.get("base_model") if method(value["merge_method"]).BASE != "input" else None
    inside = next(iter(value["modules"].values())) if value.get("modules") else value
    lists: list[tuple[Any, list[Any]]] = [(inside["models"], [])] if inside.get("models") else []
    lists = lists or [(own["sources"], [own]) for own in inside.get("slices") or ()]
    for entries, around in lists:
        yield from (
            (entry, [entry, *around, inside, value]) for entry in entries if base is None or entry["model"] != base
        )


def _own(value: Mapping[str, Any], name: str) -> list[Any]:
    """What a config says of a parameter of each input, or once for all of `t`; None where it says nothing."""
    said = [
        next((scope["parameters"][name] for scope in scopes if name in (scope.get("parameters") or {})), None)
        for _, scopes in _entries(value)
    ]
    return said[:1] if name == "t" else said


def _along(setting: Any, points: int, otherwise: float) -> list[float]:
    """A number, or a list of them, as `points` numbers over the layers; filters, and nothing, are `otherwise`."""
    try:
        numbers = [float(number) for number in (setting if isinstance(setting, list) else [setting])]
    except (TypeError, ValueError):
        return [otherwise] * points
    there, wanted = np.linspace(0, 1, len(numbers)), np.linspace(0, 1, points)
    return [round(float(number), 6) for number in np.interp(wanted, there, numbers)]


@dataclass(frozen=True)
class Found:
    """The best candidate, what it measured, and all of them in the order they were tried."""

    vector: list[float]
    value: float
    candidates: list[dict[str, Any]]


def search(
    start: Sequence[float],
    measure: Callable[[list[float]], float],
    *,
    budget: int,
    seed: int,
    bounds: tuple[float, float] = (0.0, 1.0),
    log: Path | None = None,
    tried: Callable[[], None] = lambda: None,
) -> Found:
    """The vector of numbers within bounds that measures least among `budget` candidates, the first being `start`.

    Candidates in `log`, a JSON object a line, are not measured again: proposals follow from the seed and what was
    measured, so a search that goes on proposes the same ones. `tried` is called after each. A candidate that cannot be
    merged or measured has the value None and the `reason`, and is the worst there is; `start` must be measured.
    """
    known = _known(log)
    candidates: list[dict[str, Any]] = []

    def measured(vector: list[float]) -> dict[str, Any]:
        try:
            value = measure(vector)
            if not isfinite(value):
                raise PruneError(f"measured {value:g}", where="search")
        except PruneError as error:
            if not candidates:
                raise
            return {"value": None, "reason": str(error)}
        return {"value": value}

    def tell(vector: Sequence[float]) -> float:
        rounded = [round(min(max(float(number), bounds[0]), bounds[1]), 6) for number in vector]
        number = len(candidates)
        if number < len(known) and known[number]["parameters"] == rounded:
            entry = known[number]
        else:
            entry = {"number": number, "parameters": rounded, **measured(rounded)}
            if log:
                _append(log, entry, number)
        candidates.append(entry)
        tried()
        return WORST if entry["value"] is None else float(entry["value"])

    tell(start)
    for proposals, answer in _proposals(start, budget - 1, seed, bounds):
        answer([tell(proposal[: len(start)]) for proposal in proposals])
    best = min((entry for entry in candidates if entry["value"] is not None), key=lambda entry: entry["value"])
    return Found(best["parameters"], best["value"], candidates)


def _proposals(
    start: Sequence[float], budget: int, seed: int, bounds: tuple[float, float]
) -> Iterator[tuple[list[Sequence[float]], Callable[[list[float]], None]]]:
    """Generations of candidates, each with what to call with their measurements; the last is cut to the budget."""
    need("cma", "search", what="searching", where="search")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import cma
    padded = [*start, 0.5] if len(start) == 1 else [*start]  # it does not search along a line
    settings = {"seed": seed + 1, "bounds": [*bounds], "verbose": -9, "verb_log": 0, "verb_disp": 0}
    strategy = cma.CMAEvolutionStrategy(padded, STEP, settings)
    while budget > 0:
        asked = strategy.ask()
        if len(asked) <= budget:
            yield asked, lambda values, asked=asked: strategy.tell(asked, values)  # type: ignore[misc]
        else:
            yield asked[:budget], lambda values: None  # noqa: ARG005
        budget -= len(asked)


def _known(log: Path | None) -> list[dict[str, Any]]:
    """The candidates of a search that was stopped, up to the first damaged line."""
    found: list[dict[str, Any]] = []
    if log is None or not log.is_file():
        return found
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if not isinstance(entry, dict) or entry.get("number") != len(found):
            break
        found.append(entry)
    return found


def _append(log: Path, entry: dict[str, Any], number: int) -> None:
    """Writes a candidate down after the ones before it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    lines = log.read_text(encoding="utf-8").splitlines()[:number] if log.is_file() else []
    log.write_text("".join(f"{line}\n" for line in [*lines, json.dumps(entry, sort_keys=True)]), encoding="utf-8")
