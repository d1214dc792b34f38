"""Instruction data: what an answer is, that nothing else is learnt, and how conversations share a window."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import prune
from prune import instructions
from prune.errors import PruneError

TOKENIZER = prune.open("bundled").tokenizer()


def rows(count: int) -> list[dict[str, Any]]:
    return [{"instruction": f"Say {number}.", "output": f"Here it is: {number}!"} for number in range(count)]


def text(ids: list[int], labels: list[int]) -> str:
    """What is learnt."""
    return TOKENIZER.decode([token for token, label in zip(ids, labels, strict=True) if label != -100])


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Ask", "input": "More", "output": "Answer"},
        {"instruction": "Ask", "instances": [{"input": "More", "output": "Answer"}, {"input": "other"}]},
        {"prompt": "Ask\n\nMore", "completion": "Answer"},
        {"messages": [{"role": "user", "content": "Ask\n\nMore"}, {"role": "assistant", "content": "Answer"}]},
    ],
)
def test_all_spellings_of_a_row_are_the_same_conversation(row: dict[str, Any]) -> None:
    assert instructions.conversation(row, "here") == [
        {"role": "user", "content": "Ask\n\nMore"},
        {"role": "assistant", "content": "Answer"},
    ]


def test_answers_alone_are_learnt_in_every_turn() -> None:
    turns = ["One?", "First answer.", "Two?", "Second answer."]
    messages = [{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(turns)]
    ids, labels = instructions.encode(messages, TOKENIZER, "here")
    learnt = text(ids, labels)
    assert "First answer." in learnt and "Second answer." in learnt and "?" not in learnt and "User" not in learnt
    assert labels[-1] == TOKENIZER.eos_token_id
    asked = instructions.render(messages[:1], TOKENIZER, ask=True)
    alone = TOKENIZER(asked, add_special_tokens=False)["input_ids"]
    assert ids[: len(alone)] == alone  # as when the model is asked


def test_the_models_own_template_is_used() -> None:
    tokenizer = prune.open("bundled").tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    ids, labels = instructions.encode(instructions.conversation(rows(1)[0], ""), tokenizer, "")
    assert tokenizer.decode(ids).startswith("<user>Say 0.</s><assistant>Here it is: 0!</s>")
    assert text(ids, labels).startswith("Here it is: 0!</s>")


def test_windows_hold_whole_conversations_and_padding_is_neither_seen_nor_learnt() -> None:
    found = instructions.batches(rows(20), TOKENIZER, samples=100, length=64, seed=1, batch_size=100)[0]
    whole = [instructions.encode(instructions.conversation(row, ""), TOKENIZER, "") for row in rows(20)]
    seen = [
        [token for token, mask in zip(ids, masks, strict=True) if mask]
        for ids, masks in zip(found["input_ids"].tolist(), found["attention_mask"].tolist(), strict=True)
    ]
    assert sum(map(len, seen)) == sum(len(ids) for ids, _ in whole)
    assert all(any(row[: len(ids)] == ids for ids, _ in whole) for row in seen)
    assert len(seen) < 20 and bool((found["labels"][found["attention_mask"] == 0] == -100).all())
    again = instructions.batches(rows(20), TOKENIZER, samples=100, length=64, seed=1, batch_size=100)[0]
    assert again["input_ids"].equal(found["input_ids"])


def test_conversations_longer_than_a_window_are_cut_and_those_without_an_answer_left_out() -> None:
    long = {"prompt": "word " * 200, "completion": "lost"}
    found = instructions.batches([long, *rows(1)], TOKENIZER, samples=9, length=32)
    assert sum(len(batch["input_ids"]) for batch in found) == 1
    with pytest.raises(PruneError, match="gives no window of 32 tokens with an answer in it"):
        instructions.batches([long], TOKENIZER, samples=9, length=32)


def test_rows_without_a_conversation_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"title": "no"}) + "\n")
    with pytest.raises(PruneError, match=r"rows\.jsonl: has rows with title; choices: messages, or one of instruction"):
        instructions.batches(tmp_path / "rows.jsonl", TOKENIZER, samples=1, length=32)
    with pytest.raises(PruneError, match=r"rows\.jsonl: has rows without prompt"):
        instructions.preferences(tmp_path / "rows.jsonl")


def test_preferences_are_messages_and_a_repeated_prompt_is_taken_off(tmp_path: Path) -> None:
    ask = {"role": "user", "content": "Ask"}
    full = [
        {"prompt": "Ask", "chosen": "Yes", "rejected": "No"},
        {
            "prompt": [ask],
            "chosen": [ask, {"role": "assistant", "content": "Yes"}],
            "rejected": [{"role": "assistant", "content": "No"}],
        },
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in full[:1]))
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in full[1:]))
    plain, talks = (instructions.preferences(tmp_path / name) for name in ("pairs.jsonl", "talks.jsonl"))
    assert plain == talks
    assert plain[0]["chosen"] == [{"role": "assistant", "content": "Yes"}]
