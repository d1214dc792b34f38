"""One chunk of drafts on its way: asked for, judged, answered, and eliminated where a rule says so.

Each reply is looked at as it comes, so that the rules take their time while others are still waited for.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from prune.synthesis.answers import Answers
from prune.synthesis.eliminate import same as judging
from prune.synthesis.eliminate.copied import copied
from prune.synthesis.eliminate.leaked import leaked
from prune.synthesis.eliminate.meaningless import meaningless
from prune.synthesis.eliminate.pleads import pleads
from prune.synthesis.eliminate.similar import add, similar
from prune.synthesis.evolve import Draft, number, written
from prune.synthesis.items import Attempt, Item
from prune.synthesis.languages import Language, fill
from prune.synthesis.settings import Settings
from prune.synthesis.tally import Tally
from prune.synthesis.words import spoken
from prune.synthesis.writers.writer import Reply, Request, estimated_tokens

PASSED = "passed"
JUDGE_TOKENS = 32
Check = Callable[[Item, Draft], str | None]


@dataclass(frozen=True)
class Job:
    """What an attempt is made with. `kept` is the table of the instructions that are kept."""

    settings: Settings
    answers: Answers
    kept: sqlite3.Connection
    tally: Tally
    language_of: Callable[[str], Language]  # of a text

    def ask(self, requests: Mapping[int, Request]) -> Iterator[tuple[int, Reply]]:
        """(place, reply) of each request, counted, as they come."""
        places = list(requests)
        for position, reply in self.answers.ask(list(requests.values())):
            self.tally.spend(reply)
            yield places[position], replace(reply, text=spoken(reply.text))


def attempt(drafts: Sequence[Draft], job: Job) -> Iterator[Attempt]:
    """What becomes of each draft, in order, each once it is known.

    An instruction is compared with those kept before it, in this chunk too.
    """
    tried = [Attempt(draft.item) for draft in drafts]
    for place, item in _instructions(drafts, job):
        tried[place] = _ruled(Attempt(item), drafts[place], _of_instructions(job))
    for place, each in _judged(tried, drafts, job):
        tried[place] = each
    known: dict[int, Attempt] = {}
    turn = 0
    for place, each in _answered(tried, job):
        known[place] = _ruled(each, drafts[place], _of_answers(job))
        while turn in known:
            yield _kept(known.pop(turn), job)
            turn += 1


def _of_instructions(job: Job) -> list[tuple[str, Check]]:
    """The rules that need no answer, which spare the asking for one."""
    return [
        ("leaked", _leaked),
        ("meaningless", lambda item, _: meaningless(item.instruction, language=job.language_of(item.instruction))),
        ("similar", lambda item, _: _similar(item, job)),
    ]


def _of_answers(job: Job) -> list[tuple[str, Check]]:
    def language(item: Item) -> Language:
        return job.language_of(item.answer)

    return [
        ("meaningless", lambda item, _: _of_answer(meaningless(item.answer, language=language(item)))),
        ("pleads", lambda item, _: pleads(item.answer, language=language(item))),
        ("copied", lambda item, _: copied(item.instruction, item.answer, language=language(item))),
    ]


def most_tokens(draft: Draft, settings: Settings) -> tuple[int, int]:
    """About the most tokens that an attempt takes: of prompts, and of replies."""
    instruction = settings.instruction_tokens if draft.prompt else estimated_tokens(draft.item.instruction)
    prompts = instruction if not draft.item.answer else 0
    replies = settings.answer_tokens if not draft.item.answer else 0
    if draft.prompt:
        prompts, replies = prompts + estimated_tokens(draft.prompt), replies + settings.instruction_tokens
    if draft.parent and settings.judge:
        frame = draft.language.prompts["judge"] + draft.parent.instruction
        prompts, replies = prompts + estimated_tokens(frame) + instruction, replies + JUDGE_TOKENS
    return prompts, replies


def _ruled(attempt: Attempt, draft: Draft, rules: Sequence[tuple[str, Check]]) -> Attempt:
    """An attempt after these rules; the first that eliminates it is the last that is asked."""
    for rule, check in rules:
        if attempt.rejected:
            break
        attempt = _verdict(attempt, rule, check(attempt.item, draft))
    return attempt


def _verdict(attempt: Attempt, rule: str, why: str | None) -> Attempt:
    return Attempt(attempt.item.found(rule, why or PASSED), (rule, why) if why else None)


def _instructions(drafts: Sequence[Draft], job: Job) -> Iterator[tuple[int, Item]]:
    """(place, item) with its instruction: those that bring one, and then those that are written."""
    settings = job.settings
    requests: dict[int, Request] = {}
    for place, draft in enumerate(drafts):
        if draft.prompt is None:
            yield place, _told(draft, draft.item.instruction, job)
        else:
            how = (settings.instruction_tokens, settings.temperature, "instruction", draft.item)
            requests[place] = _request(job, draft.prompt, *how)
    for place, reply in job.ask(requests):
        draft = drafts[place]
        yield place, _told(draft, written(reply.text, draft.template), job)


def _told(draft: Draft, text: str, job: Job) -> Item:
    return replace(draft.item, instruction=text, language=job.language_of(text or draft.item.instruction).name)


def _leaked(item: Item, draft: Draft) -> str | None:
    if draft.prompt is None:
        return None
    parent = draft.parent.instruction if draft.parent else ""
    return leaked(item.instruction, parent=parent, template=draft.template, language=draft.language)


def _similar(item: Item, job: Job) -> str | None:
    return similar(job.kept, item.instruction, most=job.settings.similarity)


def _of_answer(why: str | None) -> str | None:
    return f"the answer {why}" if why else None


def _judged(tried: Sequence[Attempt], drafts: Sequence[Draft], job: Job) -> Iterator[tuple[int, Attempt]]:
    """A judge compares each evolved instruction with its parent, and rates both."""
    if not job.settings.judge:
        return
    requests = {
        place: _request(job, _to_judge(draft.language, draft.parent, each.item), JUDGE_TOKENS, 0.0, "judge", draft.item)
        for place, (each, draft) in enumerate(zip(tried, drafts, strict=True))
        if draft.parent and not each.rejected
    }
    for place, reply in job.ask(requests):
        said = judging.verdict(reply.text, drafts[place].language)
        why = judging.same(said)
        item = replace(tried[place].item.found("same", why or said), ratings=judging.ratings(reply.text))
        yield place, Attempt(item, ("same", why) if why else None)


def _to_judge(language: Language, parent: Item, item: Item) -> str:
    return fill(language.prompts["judge"], parent=parent.instruction, instruction=item.instruction)


def _answered(tried: Sequence[Attempt], job: Job) -> Iterator[tuple[int, Attempt]]:
    """(place, attempt) of all, with an answer where it is not rejected: those that need none, then as they come."""
    settings = job.settings
    name = "reasoned" if settings.chain_of_thought else "answer"
    requests: dict[int, Request] = {}
    for place, each in enumerate(tried):
        if each.rejected or each.item.answer:
            yield place, each
        else:
            asked = each.item.instruction
            prompt = fill(job.language_of(asked).prompts[name], instruction=asked)
            requests[place] = _request(job, prompt, settings.answer_tokens, settings.temperature, "answer", each.item)
    for place, reply in job.ask(requests):
        yield place, Attempt(replace(tried[place].item, answer=reply.text, truncated=reply.truncated))


def _request(job: Job, prompt: str, tokens: int, temperature: float, purpose: str, item: Item) -> Request:
    return Request(prompt, tokens, temperature, number(job.settings.seed, purpose, item.id))


def _kept(attempt: Attempt, job: Job) -> Attempt:
    """Counts an item among the kept ones, unless one that was kept since it was first compared is too near."""
    if attempt.rejected:
        return attempt
    why = _similar(attempt.item, job)
    if why:
        return _verdict(attempt, "similar", why)
    add(job.kept, attempt.item.id, attempt.item.instruction)
    return attempt
