"""The rounds: the seeds first, then each slot of the pool evolved, round after round, until the budget ends it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TextIO

from prune.progress import Progress
from prune.synthesis import diversify
from prune.synthesis.attempt import PASSED, Job, attempt, most_tokens
from prune.synthesis.evolve import Draft, evolve
from prune.synthesis.items import Attempt, Item, restored, stored
from prune.synthesis.languages import load
from prune.synthesis.writers.writer import Request

CHUNK = 256  # drafts that are on their way together: what is in memory at once
TOPIC_TOKENS = 256

Keep = Callable[[Attempt], None]


def run(job: Job, seeds: Iterable[Item], scratch: Path, keep: Keep, progress: Progress) -> list[str]:
    """All rounds; `keep` is told what became of each item, in order. Gives the difficulties from low to high.

    The pool is a file in `scratch`, a line for each slot: what a slot's latest kept instruction is.
    """
    wanted = job.settings.grid()
    grid = diversify.Grid(known=[each.difficulties for each in load(job.settings.languages).values()])
    pool = scratch / "pool-0.jsonl"
    with progress.track("round 0: seeds") as advance, pool.open("w", encoding="utf-8") as file:
        for done, _ in _tried(_seeds(seeds, grid, job), job):
            keep(done)
            if not done.rejected or _sound(done):
                _put(file, done.item)
            advance()
        if wanted and not job.tally.stopped:
            for done, _ in _tried(_new(grid, job), job):
                keep(done)
                if not done.rejected:
                    _put(file, done.item)
                advance()
    given = job.settings.difficulties or (wanted.difficulties if wanted else [])
    harder = grid.harder(given)
    for round in range(1, job.settings.rounds + 1):
        if job.tally.stopped:
            break
        pool = _round(job, round, pool, harder, keep, progress)
    return grid.scale(given)


def _round(job: Job, round: int, pool: Path, harder: Mapping[str, str], keep: Keep, progress: Progress) -> Path:
    """One round over the pool; gives the next pool."""
    after = pool.with_name(f"pool-{round}.jsonl")
    with progress.track(f"round {round}") as advance, after.open("w", encoding="utf-8") as file:
        for done, draft in _tried(_evolved(job, round, pool, harder), job):
            keep(done)
            assert draft.parent
            _put(file, draft.parent if done.rejected else done.item)
            advance()
    pool.unlink()
    return after


def _seeds(seeds: Iterable[Item], grid: diversify.Grid, job: Job) -> Iterator[Draft]:
    for item in seeds:
        grid.add(item, seed=job.settings.seed)
        job.tally.seeds[item.skill, item.difficulty] += 1
        yield Draft(item, job.language_of(item.instruction))


def _new(grid: diversify.Grid, job: Job) -> Iterator[Draft]:
    wanted = job.settings.grid()
    assert wanted

    def ask(asked: Sequence[tuple[str, int]]) -> list[str]:
        replies = dict(
            job.ask([Request(prompt, TOPIC_TOKENS, job.settings.temperature, seed) for prompt, seed in asked])
        )
        return [replies[place].text for place in range(len(asked))]

    return diversify.drafts(
        grid,
        wanted,
        seed=job.settings.seed,
        ask=ask,
        language_of=lambda item: job.language_of(item.instruction),
    )


def _evolved(job: Job, round: int, pool: Path, harder: Mapping[str, str]) -> Iterator[Draft]:
    weights = job.settings.weights()
    with pool.open(encoding="utf-8") as lines:
        for slot, line in enumerate(lines):
            parent = restored(json.loads(line))
            yield evolve(
                parent,
                round=round,
                slot=slot,
                weights=weights,
                seed=job.settings.seed,
                language=job.language_of(parent.instruction),
                harder=harder,
            )


def _tried(drafts: Iterator[Draft], job: Job) -> Iterator[tuple[Attempt, Draft]]:
    """Attempts at drafts, chunk by chunk, as long as the budget pays for the next."""
    waiting: list[Draft] = []
    while True:
        waiting += islice(drafts, CHUNK - len(waiting))
        if not waiting:
            return
        count = affordable(waiting, job)
        if job.tally.stopped:
            return
        now, waiting = waiting[:count], waiting[count:]
        yield from zip(attempt(now, job), now, strict=True)


def affordable(drafts: list[Draft], job: Job) -> int:
    """How many of the drafts the budget pays for, at the most they may take. The tally says what stopped the first."""
    left = job.tally.left(job.settings.limits())
    for count, draft in enumerate(drafts):
        prompts, replies = most_tokens(draft, job.settings)
        costs = {
            "items": 1.0,
            "tokens": float(prompts + replies),
            "money": job.tally.writer.money(prompts, replies),
        }
        left = {name: rest - costs[name] for name, rest in left.items()}
        if short := [name for name, rest in left.items() if rest < 0]:
            if count == 0:
                job.tally.stopped = short[0]
            return count
    return len(drafts)


def _sound(done: Attempt) -> bool:
    """Whether a rejected seed's instruction passed, so that it may still be evolved: only its answer was no good."""
    return done.item.verdicts.get("similar") == PASSED


def _put(file: TextIO, item: Item) -> None:
    file.write(json.dumps(stored(item), ensure_ascii=False) + "\n")
