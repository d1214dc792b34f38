"""Multiple choice by log-probability: each choice continues the question, and the likeliest is the answer.

Texts become tokens exactly as lm-eval (https://github.com/EleutherAI/lm-evaluation-harness) makes them, so that the
numbers are the same; what many questions open with is computed once.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prune.errors import PruneError
from prune.model.caching import cache_argument, cache_of, repeatable, repeated, takes_cache
from prune.progress import Advance, nothing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST = 2048  # tokens, of a model and tokenizer that state no limit
POSITIONS = ("n_positions", "max_position_embeddings", "n_ctx")  # how configs call their limit
UNBOUNDED = int(1e30)  # what a tokenizer without a limit states
WORTH = 16  # tokens in common from which a prefix is computed once


@dataclass(frozen=True)
class Question:
    """`context` is all that is seen; the choices continue it, with the space that stands before them; `answer` counts
    from 0."""

    context: str
    choices: tuple[str, ...]
    answer: int


class Answered(NamedTuple):
    """The log-probability of each choice in nats, the likeliest one, and whether it is the right one."""

    logprobs: tuple[float, ...]
    chosen: int
    correct: bool


class Pair(NamedTuple):
    """Tokens of a context, and of what continues it."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True)
class _Row:
    """Tokens to run, and whose continuations end in them: (number of the pair, its continuation)."""

    tokens: tuple[int, ...]
    wanted: list[tuple[int, tuple[int, ...]]]
    whole: bool  # nothing was cut off on the left

    @property
    def ends(self) -> int:
        """How many positions at the end are looked at."""
        return max(len(continuation) for _, continuation in self.wanted)


def answer(
    module: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    batch_size: int = 8,
    share: bool = True,
    advance: Advance = nothing,
) -> list[Answered]:
    """What a causal language model answers, question by question; ties go to the first choice.

    With `share` the tokens that all questions open with go through the model once, and so does a question whose
    choices differ in their last token only. A question longer than the model has positions for loses tokens on its
    left. `module` is to be in eval mode. Raises PruneError for a choice that has no token of its own.
    """
    counts = [len(question.choices) for question in questions]
    pairs = [pair for question in questions for pair in encode(tokenizer, question.context, question.choices)]
    limit = longest(module.config, tokenizer)
    found = iter(logprobs(module, pairs, limit=limit, batch_size=batch_size, share=share, advance=advance))
    answered = []
    for question, count in zip(questions, counts, strict=True):
        values = tuple(next(found) for _ in range(count))
        chosen = max(range(count), key=values.__getitem__)
        answered.append(Answered(values, chosen, chosen == question.answer))
    return answered


def encode(tokenizer: PreTrainedTokenizerBase, context: str, continuations: Sequence[str]) -> list[Pair]:
    """Tokens of a context and of each text that continues it, as lm-eval divides them.

    Spaces at the end of the context go to the continuation. Both are made into tokens together; what the whole has
    beyond the number of tokens of the context alone is the continuation. Raises PruneError where that is nothing.
    """
    if not context:
        return [_without_context(tokenizer, text) for text in continuations]
    bare = context.rstrip()
    trailing = context[len(bare) :]
    texts = [bare, *(bare + trailing + text for text in continuations)]
    first, *wholes = _tokens(tokenizer, texts)
    pairs = [Pair(first, whole[len(first) :]) for whole in wholes]
    for text, pair in zip(continuations, pairs, strict=True):
        if not pair.continuation or not pair.context:
            raise PruneError(f"{'choice' if pair.context else 'question'} has no token of its own", where=repr(text))
    return pairs


def _without_context(tokenizer: PreTrainedTokenizerBase, text: str) -> Pair:
    ids = tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    if not ids:
        raise PruneError("choice has no token of its own", where=repr(text))
    first = _first_id(tokenizer)
    if first is None or first == ids[0]:
        return Pair(ids[:1], ids[1:])
    return Pair((first,), ids)


def _first_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def _tokens(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[tuple[int, ...]]:
    """Tokens with the special ones that the tokenizer adds, but for a text that spells out its first one."""
    first = _first_id(tokenizer)
    spelt = first is not None and texts[0].startswith(str(tokenizer.decode([first])) or "\0")
    options = {"add_special_tokens": False} if spelt else {}
    return [tuple(ids) for ids in tokenizer(texts, verbose=False, **options)["input_ids"]]


def longest(config: Any, tokenizer: Any = None) -> int:
    """Tokens that a model takes at once: what its config states, then what its tokenizer states."""
    text = getattr(config, "text_config", None) or config
    stated = [getattr(text, name, None) for name in POSITIONS]
    limit = getattr(tokenizer, "model_max_length", None)
    stated.append(limit if limit != UNBOUNDED else None)
    return next((int(number) for number in stated if number is not None), LONGEST)


@torch.inference_mode()
def logprobs(
    module: PreTrainedModel,
    pairs: Sequence[Pair],
    *,
    limit: int,
    batch_size: int = 8,
    share: bool = True,
    advance: Advance = nothing,
) -> list[float]:
    """The log-probability in nats of each continuation after its context, summed over its tokens in float32."""
    found = [0.0] * len(pairs)
    rows = _rows(pairs, limit)
    alike = [row for row in rows if row.whole] if share and takes_cache(module) else []
    prefix, cache = _prefix(module, alike)
    if cache is None:
        alike = []
    lone = [row for row in rows if not (row.whole and alike)]
    for group, start, own in ((alike, len(prefix), cache), (lone, 0, None)):
        for batch in _batches(group, batch_size):
            for number, value in _score(module, batch, start, own):
                found[number] = value
            advance(sum(len(row.wanted) for row in batch))
    return found


def _rows(pairs: Sequence[Pair], limit: int) -> list[_Row]:
    """One row for all pairs whose tokens are the same but for the last, which is predicted and never seen."""
    rows: dict[tuple[int, ...], _Row] = {}
    for number, (context, continuation) in enumerate(pairs):
        if len(continuation) > limit:
            raise PruneError(f"a choice has {len(continuation)} tokens, the model takes {limit}", where="tasks")
        tokens = (context + continuation)[-(limit + 1) :][:-1]
        whole = len(context) + len(continuation) <= limit + 1
        rows.setdefault(tokens, _Row(tokens, [], whole)).wanted.append((number, continuation))
    return sorted(rows.values(), key=lambda row: -len(row.tokens))


def _prefix(module: PreTrainedModel, rows: list[_Row]) -> tuple[tuple[int, ...], Any]:
    """The tokens that all rows open with, and the cache that the model fills with them; None when it cannot serve."""
    if len(rows) < 2:
        return (), None
    first, last = (choose(row.tokens for row in rows) for choose in (min, max))
    most = min(len(row.tokens) - row.ends for row in rows)  # what is looked at must be run anew
    common = first[: next((n for n in range(most) if first[n] != last[n]), most)]
    if len(common) < WORTH:
        return (), None
    ids = torch.tensor([common], device=module.device)
    cache = cache_of(module(input_ids=ids, use_cache=True, **_kept(module, torch.tensor([len(common) - 1]))))
    return (common, cache) if repeatable(cache, len(common)) else ((), None)


def _batches(rows: list[_Row], size: int) -> Iterator[list[_Row]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _score(module: PreTrainedModel, rows: list[_Row], start: int, cache: Any) -> Iterator[tuple[int, float]]:
    """(pair, log-probability) of one batch, whose first `start` tokens are in the cache; padded on the right, where a
    causal model does not look back from."""
    lengths = [len(row.tokens) - start for row in rows]
    ids = torch.zeros(len(rows), max(lengths), dtype=torch.long)
    for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        ids[number, :length] = torch.tensor(row.tokens[start:])
    looked = sorted({p for row, n in zip(rows, lengths, strict=True) for p in range(n - row.ends, n)})
    past = {} if cache is None else {cache_argument(module): repeated(cache, len(rows))}
    kept = _kept(module, torch.tensor(looked))
    caching = {"use_cache": cache is not None} if takes_cache(module) else {}
    logits: Tensor = module(input_ids=ids.to(module.device), **caching, **past, **kept).logits
    if not kept:
        logits = logits[:, looked]
    place = {position: column for column, position in enumerate(looked)}
    for row, length, own in zip(rows, lengths, logits, strict=True):
        columns = [place[position] for position in range(length - row.ends, length)]
        likely = own[columns].float().log_softmax(-1)  # (ends, vocabulary)
        for number, continuation in row.wanted:
            chosen = torch.tensor(continuation, device=likely.device)[:, None]
            yield number, likely[-len(continuation) :].gather(1, chosen).sum().item()


def _kept(module: PreTrainedModel, positions: Tensor) -> dict[str, Tensor]:
    """The argument that has only the logits of some positions computed, where a forward takes one."""
    if "logits_to_keep" not in inspect.signature(module.forward).parameters:
        return {}
    return {"logits_to_keep": positions.to(module.device)}
