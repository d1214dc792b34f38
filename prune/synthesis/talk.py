"""What is asked one thing after another for many items at once, with as little waiting as the writer allows."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence

from prune.synthesis.items import Attempt
from prune.synthesis.writers.writer import Reply, Request

Talk = Generator[Request, Reply, Attempt]  # asks, is told, and asks again, until it gives what became of an item
Ask = Callable[[list[Request]], Iterator[tuple[int, Reply]]]  # (position, reply) as they come


def held(talks: Sequence[Talk], ask: Ask, *, grows: bool) -> Iterator[tuple[int, Attempt]]:
    """(place, attempt) of each talk, as they end.

    Where the list that `ask` is given `grows`, what a reply leads to is added to it and asked at once. Otherwise all
    first requests are asked together, then all second ones, each time in the order of the talks.
    """
    wave: dict[int, Request] = {}
    for place, talk in enumerate(talks):
        step = _next(talk, None)
        if isinstance(step, Attempt):
            yield place, step
        else:
            wave[place] = step
    while wave:
        places = sorted(wave)
        asked = [wave[place] for place in places]
        wave = {}
        for position, reply in ask(asked):
            place = places[position]
            step = _next(talks[place], reply)
            if isinstance(step, Attempt):
                yield place, step
            elif grows:
                asked.append(step)
                places.append(place)
            else:
                wave[place] = step


def _next(talk: Talk, reply: Reply | None) -> Request | Attempt:
    try:
        return talk.send(reply)  # type: ignore[arg-type]  # None begins it
    except StopIteration as end:
        found: Attempt = end.value
        return found
