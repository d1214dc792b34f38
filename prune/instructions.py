"""Instruction data to token windows: the model's chat template, losses on answers alone, packed to length.

A row holds `messages` (role and content each), or `instruction` with `input` and `output`, or `prompt` with
`completion` or `response`. Preferences hold `prompt`, `chosen` and `rejected`, each text or messages.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prune import data
from prune.errors import PruneError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]
QUESTIONS, ANSWERS = ("instruction", "prompt", "question"), ("output", "completion", "response", "answer")
TEMPLATE = (  # for tokenizers without one of their own
    "{% for message in messages %}{{ '### ' + message['role'].capitalize() + ':\n' + message['content'] + '\n\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}"
)


def batches(
    source: str | Path | list[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    samples: int,
    length: int,
    seed: int = 0,
    batch_size: int = 8,
    split: str | None = None,
) -> list[dict[str, Tensor]]:
    """At most `samples` windows of `length` tokens, each of whole conversations; the same for the same seed.

    `source` is a local .jsonl, .json or .parquet file, a Hub dataset, or a list of rows. Conversations come in random
    order, one after the other in a window until the next does not fit; one longer than a window is cut off. Labels are
    -100 wherever the assistant does not speak. Shapes are those of `data.batches`. Raises PruneError for rows that
    hold no conversation, and where there is none.
    """
    rows = list(_rows(source, split) if isinstance(source, (str, Path)) else source)
    random.Random(seed).shuffle(rows)
    label = str(source) if isinstance(source, (str, Path)) else f"{len(rows)} rows in memory"
    talks = (encode(conversation(row, label), tokenizer, label) for row in rows)
    packed = []
    for window in pack(talks, length):
        packed.append(window)
        if len(packed) == samples:
            break
    if not packed:
        raise PruneError(f"gives no window of {length} tokens with an answer in it", where=label)
    return data.stacked(packed, length, batch_size, fill=tokenizer.pad_token_id or 0)


def _rows(source: str | Path, split: str | None) -> Iterator[dict[str, Any]]:
    """The rows of a source; of a Hub dataset those meant for training."""
    return data.rows(source, split=split or (None if data.is_file(source) else "train"))


def conversation(row: Mapping[str, Any], where: str) -> list[Message]:
    """The messages of a row. PruneError when it has none of the columns that are known."""
    if isinstance(row.get("messages"), list):
        return [{"role": str(m["role"]), "content": str(m["content"])} for m in row["messages"]]
    row = with_instance(row, where)
    question = next((row[name] for name in QUESTIONS if row.get(name)), None)
    answer = next((row[name] for name in ANSWERS if row.get(name)), None)
    if not isinstance(question, str) or not isinstance(answer, str):
        raise PruneError(
            f"has rows with {', '.join(map(str, row)) or 'nothing'}; choices: messages, or one of "
            f"{', '.join(QUESTIONS)} with one of {', '.join(ANSWERS)}",
            where=where,
        )
    more = row.get("input")
    asked = f"{question}\n\n{more}" if isinstance(more, str) and more.strip() else question
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def with_instance(row: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """A row with the input and output of its first example, where it is a task as Self-Instruct writes them."""
    instances = row.get("instances")
    if not instances:
        return row
    if not isinstance(instances, list) or not isinstance(instances[0], Mapping):
        raise PruneError("instances must be a list of {input, output}", where=where)
    return {**{name: instances[0].get(name) for name in ("input", "output")}, **row}


def preferences(source: str | Path, *, split: str | None = None) -> list[dict[str, list[Message]]]:
    """Rows of prompt, chosen and rejected as messages. PruneError for rows without them."""
    found = []
    for row in _rows(source, split):
        missing = [name for name in ("prompt", "chosen", "rejected") if not row.get(name)]
        if missing:
            raise PruneError(
                f"has rows without {missing[0]}; preferences are prompt, chosen, rejected", where=str(source)
            )
        prompt = _messages(row["prompt"], "user")
        found.append({"prompt": prompt, **{name: _answer(row[name], prompt) for name in ("chosen", "rejected")}})
    if not found:
        raise PruneError("has no rows", where=str(source))
    return found


def _answer(value: Any, prompt: list[Message]) -> list[Message]:
    """What is said after the prompt, which some data repeat in every answer."""
    said = _messages(value, "assistant")
    return said[len(prompt) :] if said[: len(prompt)] == prompt else said


def _messages(value: Any, role: str) -> list[Message]:
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return [{"role": str(message["role"]), "content": str(message["content"])} for message in value]


def encode(messages: list[Message], tokenizer: PreTrainedTokenizerBase, where: str) -> data.Row:
    """The ids of a conversation and its labels: what the assistant says, its closing tokens too, else -100.

    A prompt is cut into tokens apart from its answer, as it is when the model is asked.
    """
    ids: list[int] = []
    labels: list[int] = []
    shown = ""
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        asked = render(messages[:number], tokenizer, ask=True)
        said = render(messages[: number + 1], tokenizer, ask=False)
        if not (asked.startswith(shown) and said.startswith(asked)):
            raise PruneError("the chat template rewrites earlier turns; use conversations of one answer", where=where)
        before = tokenizer(asked[len(shown) :], add_special_tokens=False, verbose=False)["input_ids"]
        after = tokenizer(said[len(asked) :], add_special_tokens=False, verbose=False)["input_ids"]
        ids += [*before, *after]
        labels += [data.IGNORED] * len(before) + after
        shown = said
    end = tokenizer.eos_token_id
    if end is not None and ids and end not in ids[-2:]:
        ids.append(end)
        labels.append(end)
    return ids, labels


def render(messages: list[Message], tokenizer: PreTrainedTokenizerBase, *, ask: bool) -> str:
    """The text of messages, by the tokenizer's template or a plain one; with `ask`, up to where the answer begins."""
    template = None if tokenizer.chat_template else TEMPLATE
    options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": ask, "chat_template": template}
    return str(tokenizer.apply_chat_template(messages, **options))


def pack(talks: Iterable[data.Row], length: int) -> Iterator[data.Row]:
    """Windows of whole conversations, as many as fit one after the other; those without an answer are left out."""
    ids: list[int] = []
    labels: list[int] = []
    for more_ids, more_labels in talks:
        if ids and len(ids) + len(more_ids) > length:
            yield from _answered(ids, labels)
            ids, labels = [], []
        ids, labels = [*ids, *more_ids[:length]], [*labels, *more_labels[:length]]
    yield from _answered(ids, labels)


def _answered(ids: list[int], labels: list[int]) -> Iterator[data.Row]:
    if any(label != data.IGNORED for label in labels[1:]):
        yield ids, labels
