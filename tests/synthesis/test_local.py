"""A model here as a writer: the same text for the same seed, whatever was answered before, through its template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import prune
from prune.errors import PruneError
from prune.instructions import batches
from prune.synthesis.writers import make
from prune.synthesis.writers.writer import Request, Writer
from tests.tiny import tiny_model

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}<assistant>"
FORMS = ("jsonl", "parquet")
PROMPTS = ["def area(width, height):", "import os", "class Shape:\n    def", "Sort a list", "for name in"]


@pytest.fixture(scope="module")
def bundled() -> prune.Model:
    return prune.open("bundled")


def asked(writer: Writer, wanted: set[int], *, temperature: float = 0.8, tokens: int = 12) -> dict[int, str]:
    requests = [Request(prompt, tokens, temperature, number) for number, prompt in enumerate(PROMPTS)]
    return {place: reply.text for place, reply in writer.answer(requests, frozenset(wanted))}


def test_what_is_written_does_not_depend_on_what_was_answered_before() -> None:
    writer = make.writer({"model": "bundled", "batch_size": 2})
    everything = asked(writer, {0, 1, 2, 3, 4})
    assert len(set(everything.values())) == 5
    state = torch.get_rng_state()
    for wanted in ({3}, {0, 4}, {1, 2}):
        assert asked(writer, wanted) == {place: everything[place] for place in wanted}
    assert torch.equal(torch.get_rng_state(), state), "nobody else's dice are touched"


def test_opened_loaded_and_named_models_write_the_same(bundled: prune.Model) -> None:
    opened = make.writer(bundled)
    loaded = make.writer((prune.load(bundled, dtype=torch.float32), bundled.tokenizer()))
    named = make.writer("bundled")
    first = asked(opened, {0, 1, 2}, temperature=0.0)
    assert asked(loaded, {0, 1, 2}, temperature=0.0) == asked(named, {0, 1, 2}, temperature=0.0) == first


def test_batches_change_nothing_where_nothing_is_drawn() -> None:
    alone = asked(make.writer({"model": "bundled", "batch_size": 1}), set(range(5)), temperature=0.0)
    assert asked(make.writer({"model": "bundled", "batch_size": 5}), set(range(5)), temperature=0.0) == alone


def test_a_cut_model_whose_layers_differ_writes(bundled: prune.Model) -> None:
    groups = prune.groups(bundled, "channels")
    plan = {groups[0].name: list(range(256)), groups[1].name: list(range(512))}
    assert asked(make.writer(prune.cut(bundled, plan)), {0})[0]


def test_a_chat_template_is_used_where_there_is_one(bundled: prune.Model) -> None:
    tokenizer = bundled.tokenizer()
    tokenizer.chat_template = TEMPLATE
    module = prune.load(bundled, dtype=torch.float32)
    seen: list[str] = []
    generate = module.generate

    def spying(**inputs: object) -> object:
        seen.append(tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=True))  # type: ignore[index]
        return generate(**inputs)

    module.generate = spying  # type: ignore[method-assign, assignment]
    asked(make.writer((module, tokenizer)), {1})
    assert seen and all("<user>" in text and text.endswith("<assistant>") for text in seen)
    assert tokenizer.padding_side == bundled.tokenizer().padding_side, "the user's tokenizer is as it was"


def test_a_prompt_that_leaves_no_room_is_answered_with_nothing(bundled: prune.Model) -> None:
    requests = [Request("x = 1\n" * 600, 8, 0.0, 0), Request("import os", 8, 0.0, 1)]
    replies = dict(make.writer(bundled).answer(requests, frozenset({0, 1})))
    assert replies[0].text == "" and replies[0].tokens == 0
    alone = dict(make.writer(bundled).answer(requests[1:], frozenset({0})))
    assert replies[1].text == alone[0].text != ""


def test_tokens_are_counted(bundled: prune.Model) -> None:
    reply = dict(make.writer(bundled).answer([Request("import os", 8, 0.0, 1)], frozenset({0})))[0]
    assert reply.tokens == 8 and reply.truncated
    assert reply.prompt_tokens >= 2


def test_what_cannot_write_is_refused() -> None:
    with pytest.raises(PruneError, match="no tokenizer"):
        make.writer(prune.open(tiny_model("llama")))
    with pytest.raises(PruneError, match="needs its tokenizer"):
        make.writer(tiny_model("llama"))
    with pytest.raises(PruneError, match="must be a function, a model or a mapping, not 3"):
        make.writer(3)


def seeds(count: int) -> None:
    verbs = ("read", "sort", "join", "count", "trim")
    names = [f"{verb}_{noun}" for noun in "abcdefghijklmnopqrstuvwx" for verb in verbs][:count]
    rows = [{"skill": name[0], "difficulty": "easy", "instruction": f"def {name}(value): # {name}"} for name in names]
    Path("seeds.json").write_text(json.dumps(rows))


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seeds(3)
    options = {"seeds": "seeds.json", "rounds": 1, "instruction_tokens": 6, "answer_tokens": 6}
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        prune.synthesize(name, writer="bundled", seed=seed, **options)
    for name in ("data.jsonl", "data.parquet", "rejected.jsonl", "index.html", "prune.json"):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes(), name
    assert Path("one/data.jsonl").read_bytes() != Path("three/data.jsonl").read_bytes()


def test_the_bundled_model_tries_200_items_that_distill_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seeds(120)
    options = {"rounds": 9, "budget": {"items": 200}, "instruction_tokens": 8, "answer_tokens": 6}
    writer = {"model": "bundled", "batch_size": 50}
    found = prune.synthesize("out", seeds="seeds.json", writer=writer, judge=False, **options)
    assert (found["attempted"], found["stopped"]) == (200, "items")
    assert found["kept"] >= 20 and found["kept"] + sum(found["rejected"].values()) == 200
    texts = [batches(f"out/data.{form}", prune.open("bundled").tokenizer(), samples=4, length=64) for form in FORMS]
    assert all(torch.equal(one["labels"], other["labels"]) for one, other in zip(*texts, strict=True))
    step = {"data": "out/data.jsonl", "chat": True, "steps": 1, "samples": 4, "length": 64, "batch_size": 2}
    result = prune.apply({"model": "bundled", "output": "trained", "steps": [{"distill": step}]})
    assert result.steps[0]["record"]["training"]["tokens"] > 0
