"""One chunk of drafts on its way: asked for, judged, answered, and eliminated where a rule says so.

Each reply is looked at as it comes, so that the rules take their time while others are still waited for.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from prune.synthesis.answers import Answers
from prune.synthesis.eliminate import same as judging
from prune.synthesis.eliminate.copied import copied
from prune.synthesis.eliminate.cut import cut
from prune.synthesis.eliminate.leaked import leaked
from prune.synthesis.eliminate.meaningless import meaningless
from prune.synthesis.eliminate.pleads import pleads
from prune.synthesis.eliminate.similar import add, count, similar
from prune.synthesis.evolve import Draft, number, written
from prune.synthesis.items import Attempt, Item
from prune.synthesis.languages import Language, fill
from prune.synthesis.settings import Settings
from prune.synthesis.talk import Talk, held
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

    def ask(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        """(position, reply) of each request, counted, as they come; see `Answers.ask`."""
        for position, reply in self.answers.ask(requests):
            self.tally.spend(reply)
            yield position, replace(reply, text=spoken(reply.text))


def attempt(drafts: Sequence[Draft], job: Job) -> Iterator[Attempt]:
    """What becomes of each draft, in order, each once it is known.

    An instruction is compared with those kept before it, in this chunk too.
    """
    before = count(job.kept)
    talks = [_talk(draft, job, before) for draft in drafts]
    known: dict[int, Attempt] = {}
    turn = 0
    for place, each in held(talks, job.ask, grows=job.answers.writer.grows):
        known[place] = each
        while turn in known:
            yield _kept(known.pop(turn), job)
            turn += 1


def _talk(draft: Draft, job: Job, before: int) -> Talk:
    """One draft's way: its instruction is written, judged and answered, unless a rule ends it."""
    settings, text, why = job.settings, draft.item.instruction, None
    if draft.prompt is not None:
        how = (settings.instruction_tokens, settings.temperature, "instruction", draft.item)
        reply = yield _request(job, draft.prompt, *how)
        text = written(reply.text, draft.template)
        why = cut(reply.text, template=draft.template) if reply.truncated else None
    item = replace(draft.item, instruction=text, language=job.language_of(text or draft.item.instruction).name)
    done = _ruled(_verdict(Attempt(item), "cut", why), draft, _of_instructions(job, before))
    if settings.judge and draft.parent and not done.rejected:
        prompt = fill(draft.language.prompts["judge"], parent=draft.parent.instruction, instruction=text)
        reply = yield _request(job, prompt, JUDGE_TOKENS, 0.0, "judge", draft.item)
        done = _judged(done.item, reply, draft.language)
    if not done.rejected and not done.item.answer:
        name = "reasoned" if settings.chain_of_thought else "answer"
        prompt = fill(job.language_of(text).prompts[name], instruction=text)
        reply = yield _request(job, prompt, settings.answer_tokens, settings.temperature, "answer", draft.item)
        done = Attempt(replace(done.item, answer=reply.text, truncated=reply.truncated))
    return _ruled(done, draft, _of_answers(job))


def _judged(item: Item, reply: Reply, language: Language) -> Attempt:
    """What a judge found, who compares an evolved instruction with its parent and rates both."""
    said = judging.verdict(reply.text, language)
    why = judging.same(said)
    item = replace(item.found("same", why or said), ratings=judging.ratings(reply.text))
    return Attempt(item, ("same", why) if why else None)


def _of_instructions(job: Job, before: int) -> list[tuple[str, Check]]:
    """The rules that need no answer, which spare the asking for one.

    Here instructions are compared with those kept `before` this chunk, so that it does not matter which reply is first.
    """
    return [
        ("leaked", lambda item, draft: _leaked(item, draft, job)),
        ("meaningless", lambda item, _: meaningless(item.instruction, language=job.language_of(item.instruction))),
        ("similar", lambda item, _: _similar(item, job, before)),
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


def _leaked(item: Item, draft: Draft, job: Job) -> str | None:
    if draft.prompt is None:
        return None
    parent = draft.parent.instruction if draft.parent else ""
    language = job.language_of(item.instruction)
    return leaked(item.instruction, parent=parent, template=draft.template, language=language)


def _similar(item: Item, job: Job, before: int | None = None) -> str | None:
    return similar(job.kept, item.instruction, most=job.settings.similarity, parent=item.parent, before=before)


def _of_answer(why: str | None) -> str | None:
    return f"the answer {why}" if why else None


def _request(job: Job, prompt: str, tokens: int, temperature: float, purpose: str, item: Item) -> Request:
    return Request(prompt, tokens, temperature, number(job.settings.seed, purpose, item.id))


def _kept(attempt: Attempt, job: Job) -> Attempt:
    """Counts an item among the kept ones, unless one that was kept since it was first compared is too near."""
    if attempt.rejected:
        return attempt
    why = _similar(attempt.item, job)
    if why:
        return _verdict(attempt, "similar", why)
    add(job.kept, attempt.item.id, attempt.item.instruction, parent=attempt.item.parent)
    return attempt
