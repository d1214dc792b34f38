"""What a synthesis has done so far, in numbers that do not grow with its items: for budget, record and page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from prune.synthesis.eliminate.same import UNREADABLE
from prune.synthesis.items import RULES, Attempt, Item
from prune.synthesis.settings import Budget
from prune.synthesis.words import length
from prune.synthesis.writers.writer import Reply, Writer

SHOWN = 3  # examples of each rule, and of each round


@dataclass
class Round:
    """One round: what was tried, and what the kept ones are like."""

    attempted: int = 0
    kept: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)  # tried
    kept_operations: Counter[str] = field(default_factory=Counter)
    words: int = 0  # of the kept instructions, together
    answer_words: int = 0
    rated: int = 0
    ratings: list[int] = field(default_factory=lambda: [0, 0])  # sums: of the parents' difficulty, and their own
    unreadable: int = 0  # judges' replies
    truncated: int = 0

    def add(self, attempt: Attempt) -> None:
        item = attempt.item
        operation = item.operations[-1] if item.operations else "seed"
        self.attempted += 1
        self.operations[operation] += 1
        self.unreadable += item.verdicts.get("same") == UNREADABLE
        if attempt.rejected:
            self.rejected[attempt.rejected[0]] += 1
            return
        self.kept += 1
        self.kept_operations[operation] += 1
        self.words += length(item.instruction)
        self.answer_words += length(item.answer)
        self.truncated += item.truncated
        if item.ratings:
            self.rated += 1
            self.ratings = [total + own for total, own in zip(self.ratings, item.ratings, strict=True)]

    def record(self, number: int) -> dict[str, Any]:
        """As JSON; means are None where there is nothing to take them of."""
        return {
            "round": number,
            "attempted": self.attempted,
            "kept": self.kept,
            "rejected": {rule: self.rejected[rule] for rule in RULES if self.rejected[rule]},
            "operations": {
                name: [self.operations[name], self.kept_operations[name]] for name in sorted(self.operations)
            },
            "words": _mean(self.words, self.kept),
            "answer_words": _mean(self.answer_words, self.kept),
            "difficulty": [_mean(total, self.rated) for total in self.ratings],
            "unreadable_verdicts": self.unreadable,
            "truncated_answers": self.truncated,
        }


@dataclass
class Tally:
    """The whole run."""

    writer: Writer
    rounds: dict[int, Round] = field(default_factory=dict)
    requests: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    seeds: Counter[tuple[str, str]] = field(default_factory=Counter)
    kept: Counter[tuple[str, str]] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    topics: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[tuple[Item, str]]] = field(default_factory=dict)  # of a rule, or a round: items and why
    stopped: str | None = None

    @property
    def attempted(self) -> int:
        return sum(each.attempted for each in self.rounds.values())

    @property
    def money(self) -> float:
        return self.writer.money(self.prompt_tokens, self.tokens)

    def spend(self, reply: Reply) -> None:
        """Counts what a reply took, whenever it was given."""
        self.requests += 1
        self.prompt_tokens += reply.prompt_tokens
        self.tokens += reply.tokens

    def add(self, attempt: Attempt) -> None:
        """Counts what became of an item."""
        item = attempt.item
        self.rounds.setdefault(item.round, Round()).add(attempt)
        if attempt.rejected:
            self._show(*attempt.rejected, item)
            return
        self._show(f"round {item.round}", "", item)
        self.kept[item.skill, item.difficulty] += 1
        self.languages[item.language] += 1
        for counter, value in ((self.kinds, item.kind), (self.formats, item.format), (self.topics, item.topic)):
            if value:
                counter[value] += 1

    def _show(self, name: str, why: str, item: Item) -> None:
        shown = self.examples.setdefault(name, [])
        if len(shown) < SHOWN:
            shown.append((item, why))

    def left(self, budget: Budget) -> dict[str, float]:
        """What of the budget is left, of each limit that it has."""
        spent = {"items": self.attempted, "tokens": self.prompt_tokens + self.tokens, "money": self.money}
        return {name: limit - spent[name] for name in spent if (limit := getattr(budget, name)) is not None}

    def record(self, difficulties: Sequence[str]) -> dict[str, Any]:
        """As JSON: the same for the same answers."""
        kept = sum(each.kept for each in self.rounds.values())
        rejected = sum((each.rejected for each in self.rounds.values()), Counter[str]())
        return {
            "attempted": self.attempted,
            "kept": kept,
            "rejected": {rule: rejected[rule] for rule in RULES if rejected[rule]},
            "rounds": [self.rounds[number].record(number) for number in sorted(self.rounds)],
            "coverage": self._coverage(difficulties),
            "spent": {
                "requests": self.requests,
                "prompt_tokens": self.prompt_tokens,
                "tokens": self.tokens,
                "money": round(self.money, 6),
            },
            "stopped": self.stopped,
            "writer": self.writer.name,
        }

    def _coverage(self, difficulties: Sequence[str]) -> dict[str, Any]:
        skills = sorted({skill for skill, _ in (*self.seeds, *self.kept)})
        cells = [(skill, difficulty) for skill in skills for difficulty in difficulties]
        return {
            "skills": skills,
            "difficulties": list(difficulties),
            "seeds": [[self.seeds[skill, each] for each in difficulties] for skill in skills],
            "kept": [[self.kept[skill, each] for each in difficulties] for skill in skills],
            "filled": [_mean(sum(found[cell] > 0 for cell in cells), len(cells)) for found in (self.seeds, self.kept)],
            "kinds": dict(sorted(self.kinds.items())),
            "formats": dict(sorted(self.formats.items())),
            "topics": dict(sorted(self.topics.items())),
            "languages": dict(sorted(self.languages.items())),
        }


def _mean(total: float, count: int) -> float | None:
    return round(total / count, 3) if count else None
