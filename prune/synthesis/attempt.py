"""One chunk of drafts on its way: asked for, judged, answered, and eliminated where a rule says so."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
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
from prune.synthesis.writers.writer import Reply, Request, estimated_tokens

PASSED = "passed"
JUDGE_TOKENS = 32
Check = Callable[[Item, Draft], str | None]
Tried = list[tuple[Attempt, Draft]]


@dataclass(frozen=True)
class Job:
    """What an attempt is made with. `kept` is the table of the instructions that are kept."""

    settings: Settings
    answers: Answers
    kept: sqlite3.Connection
    tally: Tally
    language_of: Callable[[str], Language]  # of a text

    def ask(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies, counted."""
        replies = self.answers.ask(requests)
        self.tally.spend(replies)
        return replies


def attempt(drafts: Sequence[Draft], job: Job) -> list[Attempt]:
    """What becomes of each draft, in order. An instruction is compared with those kept before it, in this chunk too."""
    made = _instructions(drafts, job)
    tried = [(Attempt(item), draft) for item, draft in zip(made, drafts, strict=True)]
    for rule, check in _of_instructions(job):
        tried = _ruled(tried, rule, check)
    tried = _answered(_judged(tried, job), job)
    for rule, check in _of_answers(job):
        tried = _ruled(tried, rule, check)
    return [_kept(each, job) for each, _ in tried]


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


def _ruled(tried: Tried, rule: str, check: Check) -> Tried:
    """Every attempt that is not rejected yet, with what one rule finds."""
    return [
        (_verdict(each, rule, check(each.item, draft)) if not each.rejected else each, draft) for each, draft in tried
    ]


def _verdict(attempt: Attempt, rule: str, why: str | None) -> Attempt:
    return Attempt(attempt.item.found(rule, why or PASSED), (rule, why) if why else None)


def _instructions(drafts: Sequence[Draft], job: Job) -> list[Item]:
    settings = job.settings
    asked = [draft for draft in drafts if draft.prompt is not None]
    requests = [
        _request(job, draft.prompt or "", settings.instruction_tokens, settings.temperature, "instruction", draft.item)
        for draft in asked
    ]
    said = iter(job.ask(requests))
    texts = [written(next(said).text, d.template) if d.prompt is not None else d.item.instruction for d in drafts]
    return [
        replace(draft.item, instruction=text, language=job.language_of(text or draft.item.instruction).name)
        for draft, text in zip(drafts, texts, strict=True)
    ]


def _leaked(item: Item, draft: Draft) -> str | None:
    if draft.prompt is None:
        return None
    parent = draft.parent.instruction if draft.parent else ""
    return leaked(item.instruction, parent=parent, template=draft.template, language=draft.language)


def _similar(item: Item, job: Job) -> str | None:
    return similar(job.kept, item.instruction, most=job.settings.similarity)


def _of_answer(why: str | None) -> str | None:
    return f"the answer {why}" if why else None


def _judged(tried: Tried, job: Job) -> Tried:
    """A judge compares each evolved instruction with its parent, and rates both."""
    if not job.settings.judge:
        return tried
    asked = [
        (place, draft, _to_judge(draft.language, draft.parent, each.item))
        for place, (each, draft) in enumerate(tried)
        if draft.parent and not each.rejected
    ]
    requests = [_request(job, prompt, JUDGE_TOKENS, 0.0, "judge", draft.item) for _, draft, prompt in asked]
    done = list(tried)
    for (place, draft, _), reply in zip(asked, job.ask(requests), strict=True):
        said = judging.verdict(reply.text, draft.language)
        why = judging.same(said)
        item = replace(tried[place][0].item.found("same", why or said), ratings=judging.ratings(reply.text))
        done[place] = (Attempt(item, ("same", why) if why else None), draft)
    return done


def _to_judge(language: Language, parent: Item, item: Item) -> str:
    return fill(language.prompts["judge"], parent=parent.instruction, instruction=item.instruction)


def _answered(tried: Tried, job: Job) -> Tried:
    """Answers for those that have none yet."""
    settings = job.settings
    name = "reasoned" if settings.chain_of_thought else "answer"
    asked = [place for place, (each, _) in enumerate(tried) if not each.rejected and not each.item.answer]
    requests = [
        _request(
            job,
            fill(job.language_of(item.instruction).prompts[name], instruction=item.instruction),
            settings.answer_tokens,
            settings.temperature,
            "answer",
            item,
        )
        for item in (tried[place][0].item for place in asked)
    ]
    done = list(tried)
    for place, reply in zip(asked, job.ask(requests), strict=True):
        item = replace(tried[place][0].item, answer=reply.text, truncated=reply.truncated)
        done[place] = (Attempt(item), tried[place][1])
    return done


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
