"""What a synthesis is told: one shape for the recipe word, the command's config and the API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from pydantic import Field

from prune.errors import PruneError, unknown
from prune.options import check_options

Positive = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]

DEPTH = ("constrain", "deepen", "concretise", "reason", "complicate")
BREADTH = "breadth"
WEIGHTS = {**dict.fromkeys(DEPTH, 1.0), BREADTH: 0.5}
OWN_MODEL = "model"  # the writer that is the recipe's model as the step finds it


@dataclass(frozen=True, kw_only=True)
class Local:
    """A model here: a folder, a Hub id, or `bundled`."""

    model: str
    revision: str | None = None
    batch_size: Positive = 8
    top_p: Share = 0.95


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """An OpenAI-compatible endpoint; `token` names an environment variable."""

    endpoint: str
    model: str
    at_once: Positive = 16
    retries: Annotated[int, Field(ge=0)] = 8
    timeout: Annotated[float, Field(gt=0)] = 120.0
    requests_per_minute: Annotated[float, Field(gt=0)] | None = None
    tokens_per_minute: Annotated[float, Field(gt=0)] | None = None
    token: str = "OPENAI_API_KEY"
    body: dict[str, Any] = field(default_factory=dict)
    prices: dict[str, Weight] = field(default_factory=dict)

    def paid(self) -> tuple[float, float]:
        """Money per million tokens, of prompts and of replies."""
        return self.prices.get("prompt", 0.0), self.prices.get("reply", 0.0)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What stops a run: items tried, tokens, or money in the unit of the writer's prices."""

    items: Positive | None = None
    tokens: Positive | None = None
    money: Annotated[float, Field(gt=0)] | None = None


@dataclass(frozen=True, kw_only=True)
class Diversify:
    """New instructions for the cells of the grid that have fewest."""

    items: Positive
    topics: Positive = 5
    subtopics: Annotated[int, Field(ge=0)] = 3
    skills: list[str] = field(default_factory=list)
    difficulties: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    formats: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A synthesis. docs/recipe.md says what each option means, under `synthesize`."""

    rounds: Annotated[int, Field(ge=0)] = 4
    operations: dict[str, Weight] = field(default_factory=dict)
    judge: bool = True
    chain_of_thought: bool = False
    similarity: Share = 0.7
    difficulties: list[str] = field(default_factory=list)
    diversify: dict[str, Any] | None = None
    budget: dict[str, Any] = field(default_factory=dict)
    language: str = "auto"
    languages: list[str] = field(default_factory=list)
    field: str | None = None
    split: str | None = None
    temperature: Weight = 0.7
    instruction_tokens: Positive = 512
    answer_tokens: Positive = 1024
    answers: str | None = None
    seed: Annotated[int, Field(ge=0)] = 0

    def weights(self) -> dict[str, float]:
        """Operation -> weight: those given, or all of them with in-breadth half as often as each other."""
        given = self.operations or WEIGHTS
        for name in given:
            if name not in WEIGHTS:
                raise unknown("operation", name, WEIGHTS).at("operations")
        if self.rounds and not sum(given.values()):
            raise PruneError("all weights are 0; give one operation a weight, or 0 rounds", where="operations")
        return dict(given)

    def limits(self) -> Budget:
        """The budget."""
        return _made(Budget, self.budget, "budget")

    def grid(self) -> Diversify | None:
        """How to diversify, where that is asked for; of all difficulties named, where it names none itself."""
        if self.diversify is None:
            return None
        made: Diversify = _made(Diversify, self.diversify, "diversify")
        return replace(made, difficulties=made.difficulties or self.difficulties)


def settings(options: Mapping[str, Any]) -> Settings:
    """Settings from options, each checked. PruneError that names the option."""
    check_options(Settings, options, of="synthesize")
    made = Settings(**options)
    made.weights()
    made.limits()
    made.grid()
    return made


def check_prices(settings: Settings, prices: tuple[float, float]) -> None:
    """PruneError for a budget of money that nothing would count against."""
    if settings.limits().money is not None and not any(prices):
        raise PruneError(
            "money is counted by the writer's prices and it has none: give it `prices: {prompt: ..., reply: ...}`, or "
            "budget items or tokens",
            where="budget",
        )


def writer_settings(given: str | Mapping[str, Any]) -> Local | Endpoint | None:
    """A writer as a config gives it; None for the recipe's own model. PruneError for anything else."""
    if given == OWN_MODEL:
        return None
    if isinstance(given, str):
        return Local(model=given)
    if "endpoint" not in given:
        return _made(Local, given, "writer")
    made = _made(Endpoint, given, "writer")
    for name in made.prices:
        if name not in ("prompt", "reply"):
            raise unknown("price", name, ("prompt", "reply")).at("writer")
    if not made.token.isidentifier():
        raise PruneError(
            "token is the name of the variable that holds the key, as OPENAI_API_KEY, not a key", where="writer"
        )
    if not made.endpoint.startswith(("http://", "https://")):
        raise PruneError(f"endpoint must be as in http://localhost:8000/v1, not {made.endpoint!r}", where="writer")
    return made


def _made(kind: type, given: Mapping[str, Any], where: str) -> Any:
    try:
        check_options(kind, given, of=where)
    except PruneError as error:
        raise error.at(where) from None
    return kind(**given)
