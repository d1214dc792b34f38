"""Diversity: the grid of skill and difficulty, topics and subtopics, task kinds and formats for its emptiest cells."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from prune.errors import PruneError, unknown
from prune.synthesis.evolve import Draft, number
from prune.synthesis.items import Item
from prune.synthesis.languages import Language, fill
from prune.synthesis.settings import Diversify
from prune.synthesis.words import normal

EXAMPLES = 8  # seeds of a skill that may be shown for their tone
LONGEST = 100  # characters of a topic

Ask = Callable[[Sequence[tuple[str, int]]], list[str]]  # (prompt, seed) -> what was said


@dataclass
class Grid:
    """How many seeds each skill and difficulty has, and a few of each skill, drawn fairly as they come by."""

    cells: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: dict[str, list[Item]] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    difficulties: list[str] = field(default_factory=list)  # in the order in which they were met
    known: Sequence[Sequence[Sequence[str]]] = ()  # of each language, its words for them from low to high

    def add(self, item: Item, *, seed: int) -> None:
        """Counts a seed."""
        self.cells[item.skill, item.difficulty] += 1
        if item.difficulty not in self.difficulties:
            self.difficulties.append(item.difficulty)
        held = self.examples.setdefault(item.skill, [])
        self.seen[item.skill] += 1
        place = number(seed, "example", item.id) % self.seen[item.skill]
        if len(held) < EXAMPLES:
            held.append(item)
        elif place < EXAMPLES:
            held[place] = item

    def scale(self, given: Sequence[str] = ()) -> list[str]:
        """The difficulties from low to high, as far as that is known: as given, then numbers, words, and the rest."""
        met = [name for order in self._orders() for step in order for name in step]
        return list(dict.fromkeys([*given, *met, *self.difficulties]))

    def harder(self, given: Sequence[str] = ()) -> dict[str, str]:
        """Difficulty -> the one that is a step harder, where the order is known: given, of numbers or of words."""
        orders = [[[each] for each in given]] if given else self._orders()
        steps = [(low, high[0]) for order in orders for lows, high in pairwise(order) for low in lows]
        return dict(steps)

    def _orders(self) -> Iterator[list[list[str]]]:
        """The difficulties that were met, from low to high, those of one step together: numbers, each language's."""
        numbers = sorted((each for each in self.difficulties if re.fullmatch(r"\d+(\.\d+)?", each)), key=float)
        yield [[each] for each in numbers]
        for steps in self.known:
            met = ([each for each in self.difficulties if normal(each) in step] for step in steps)
            yield [step for step in met if step]


def check(settings: Diversify, used: Sequence[Language], known: Iterable[Language]) -> None:
    """PruneError for kinds and formats that no language has, and for a language in use that has none of them.

    `used` are the languages of the seeds, as far as they are known.
    """
    for name, asked in (("kinds", settings.kinds), ("formats", settings.formats)):
        every = {word: None for language in (used or known) for word in getattr(language, name)}
        for word in asked:
            if word not in every:
                raise unknown(name.removesuffix("s"), word, every).at("diversify")
        for language in used:
            own = getattr(language, name)
            if asked and not set(asked) & set(own):
                raise PruneError(
                    f"there are seeds in {language.name}, which has none of the {name} {', '.join(asked)}; "
                    f"choices there: {', '.join(own)}",
                    where="diversify",
                )


def drafts(
    grid: Grid, settings: Diversify, *, seed: int, ask: Ask, language_of: Callable[[Item], Language]
) -> Iterator[Draft]:
    """Drafts of `settings.items` new instructions, for the emptiest cells first."""
    skills = settings.skills or sorted(grid.examples)
    difficulties = settings.difficulties or grid.scale()
    fallback = next(iter(grid.examples.values()))
    languages = {skill: language_of(grid.examples.get(skill, fallback)[0]) for skill in skills}
    check(settings, list(languages.values()), ())
    subjects = _subjects(skills, languages, settings, seed, ask)
    cells = Counter({(skill, each): grid.cells[skill, each] for skill in skills for each in difficulties})
    for count in range(settings.items):
        rng = random.Random(number(seed, "write", count))
        skill, difficulty = min(cells, key=lambda cell: (cells[cell], number(seed, *cell)))
        cells[skill, difficulty] += 1
        example = rng.choice(grid.examples.get(skill, fallback))
        language = languages[skill]
        kind, form = _kind(language, settings, rng)
        topic = rng.choice(subjects[skill])
        template = language.prompts["write"]
        prompt = fill(
            template,
            skill=skill,
            difficulty=difficulty,
            topic=topic,
            kind=language.kinds[kind]["asks"],
            format=language.formats[form],
            example=example.instruction,
        )
        item = Item(
            id=f"new-{count}",
            seed=example.id,
            skill=skill,
            difficulty=difficulty,
            language=language.name,
            operations=("write",),
            topic=topic,
            kind=kind,
            format=form,
        )
        yield Draft(item, language, None, template, prompt)


def _subjects(
    skills: Sequence[str], languages: Mapping[str, Language], settings: Diversify, seed: int, ask: Ask
) -> dict[str, list[str]]:
    """Skill -> its subjects: topics, or their subtopics. A skill of which nothing was said is its own subject."""
    asked = [
        (fill(languages[skill].prompts["topics"], skill=skill, count=settings.topics), number(seed, "topics", skill))
        for skill in skills
    ]
    topics = {skill: lines(said, settings.topics) or [skill] for skill, said in zip(skills, ask(asked), strict=True)}
    if not settings.subtopics:
        return topics
    pairs = [(skill, topic) for skill in skills for topic in topics[skill]]
    asked = [
        (
            fill(languages[skill].prompts["subtopics"], skill=skill, topic=topic, count=settings.subtopics),
            number(seed, "subtopics", skill, topic),
        )
        for skill, topic in pairs
    ]
    found: dict[str, list[str]] = {skill: [] for skill in skills}
    for (skill, topic), said in zip(pairs, ask(asked), strict=True):
        found[skill] += [f"{topic}: {narrow}" for narrow in lines(said, settings.subtopics)] or [topic]
    return found


def _kind(language: Language, settings: Diversify, rng: random.Random) -> tuple[str, str]:
    """A task kind and a format that fit each other; any format asked for where none of them fits the kind.

    Of the kinds and formats asked for, those that the language has.
    """
    kind = rng.choice([each for each in settings.kinds if each in language.kinds] or list(language.kinds))
    fitting = language.kinds[kind]["formats"]
    asked = [each for each in settings.formats if each in language.formats]
    return kind, rng.choice([each for each in fitting if each in asked] or asked or fitting)


def lines(reply: str, most: int) -> list[str]:
    """The lines of a list, each once, without their numbers and bullets."""
    plain = [re.sub(r"^\s*(?:[-*•·]|\d+[.):])\s*", "", line).strip(" \"'.") for line in reply.splitlines()]
    return list(dict.fromkeys(line for line in plain if 1 < len(line) <= LONGEST))[:most]
