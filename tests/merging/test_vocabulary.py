"""Models with other tokens: refused, or their rows are moved to where the merged vocabulary has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

import prune
from prune.errors import PruneError
from prune.merging.merge import prepare
from prune.merging.prints import of_config
from tests.tiny import tiny_model

ONE = ["<unk>", "<s>", "</s>", *(f"w{number}" for number in range(10))]
TWO = ["<unk>", "<s>", "</s>", "new", *(f"w{number}" for number in (3, 1, 2, 0, 4, 5, 6, 7, 8))]


def made(folder: Path, words: list[str], seed: int, **changes: Any) -> Path:
    changes = {"vocab_size": len(words), "pad_token_id": None, **changes}
    prune.save(prune.open(tiny_model("llama", seed=seed, **changes)), folder)
    return with_tokenizer(folder, words)


def with_tokenizer(folder: Path, words: list[str]) -> Path:
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    made(folder / "one", ONE, 0)
    made(folder / "two", TWO, 1)
    return folder


def keys(place: Path, **more: Any) -> dict[str, Any]:
    return {
        "merge_method": "linear",
        "models": [{"model": str(place / "one")}, {"model": str(place / "two")}],
        "parameters": {"weight": 1},
        **more,
    }


def test_different_vocabularies_are_refused_with_sizes_and_tokens(place: Path) -> None:
    with pytest.raises(PruneError) as caught:
        prune.merge(keys(place))
    for said in ("13 and 13 tokens", "3 is 'w0' and 'new'", "tokenizer_source: union, or base"):
        assert said in str(caught.value)


@pytest.mark.parametrize("tied", [False, True])
def test_union_has_everyones_tokens_in_their_rows(tmp_path: Path, tied: bool) -> None:
    made(tmp_path / "one", ONE, 0, tie_word_embeddings=tied)
    made(tmp_path / "two", TWO, 1, tie_word_embeddings=tied)
    merged = prune.merge(keys(tmp_path, tokenizer_source="union"))
    prune.save(merged, tmp_path / "out")
    vocabulary = AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab()
    assert set(vocabulary) == {*ONE, *TWO}
    out = prune.open(tmp_path / "out")
    assert out.config.vocab_size == len(vocabulary) == 14
    for name in ("model.embed_tokens.weight", *([] if tied else ["lm_head.weight"])):
        one, two, both = (prune.open(tmp_path / who).tensors.read(name) for who in ("one", "two", "out"))
        for word, number in vocabulary.items():
            rows = [table[words.index(word)] for table, words in ((one, ONE), (two, TWO)) if word in words]
            torch.testing.assert_close(both[number], sum(rows) / len(rows))
    with torch.no_grad():
        assert torch.isfinite(prune.load(out)(torch.tensor([[1, 13, 5]])).logits).all()


def test_base_keeps_its_own_tokens(place: Path) -> None:
    merged = prune.merge(keys(place, tokenizer_source="base", base_model=str(place / "two")))
    rows = merged.tensors.read("model.embed_tokens.weight")
    one, two = (prune.open(place / who).tensors.read("model.embed_tokens.weight") for who in ("one", "two"))
    assert len(rows) == 13
    torch.testing.assert_close(rows[TWO.index("w3")], (one[ONE.index("w3")] + two[TWO.index("w3")]) / 2)
    torch.testing.assert_close(rows[TWO.index("new")], two[TWO.index("new")])


def test_tokens_are_taken_from_where_the_config_says(place: Path) -> None:
    one, two = str(place / "one"), str(place / "two")
    tokens = {
        "w9": {"source": {"kind": "model_token", "model": two, "token": "new"}, "force": True},
        "w8": {"source": {"kind": "zero"}, "force": True},
        "extra": {"source": one and {"kind": "model_token", "model": one, "token_id": 4}},
    }
    merged = prune.merge(keys(place, tokenizer={"source": "union", "tokens": tokens, "pad_to_multiple_of": 16}))
    rows = merged.tensors.read("model.embed_tokens.weight")
    assert len(rows) == 16 == merged.config.vocab_size
    vocabulary = merged.tokenizer().get_vocab()
    first, second = (prune.open(who).tensors.read("model.embed_tokens.weight") for who in (one, two))
    torch.testing.assert_close(rows[vocabulary["w9"]], second[TWO.index("new")])
    assert not rows[vocabulary["w8"]].any()
    torch.testing.assert_close(rows[vocabulary["extra"]], first[4])
    torch.testing.assert_close(rows[15], rows[:15].mean(dim=0), rtol=1e-4, atol=1e-5)


def test_a_token_of_nobody_is_refused(place: Path) -> None:
    tokens = {"x": {"source": {"kind": "model_token", "model": str(place / "one"), "token": "nowhere"}}}
    with pytest.raises(PruneError, match="has no token 'nowhere'"):
        prune.merge(keys(place, tokenizer={"source": "union", "tokens": tokens}))


@pytest.mark.parametrize(("template", "holds"), [("chatml", "<|im_start|>"), ("{{ messages }}!", "{{ messages }}!")])
def test_chat_templates_travel_along(place: Path, tmp_path: Path, template: str, holds: str) -> None:
    alone = {"merge_method": "passthrough", "models": [{"model": str(place / "one")}], "chat_template": template}
    prune.save(prune.merge(alone), tmp_path / "out")
    assert holds in AutoTokenizer.from_pretrained(tmp_path / "out").chat_template


def test_auto_takes_the_template_that_most_models_have(place: Path, tmp_path: Path) -> None:
    for number, text in enumerate(("a {{ messages }}", "b {{ messages }}", "b {{ messages }}")):
        (made(tmp_path / str(number), ONE, number) / "chat_template.jinja").write_text(text)
    all_three = [{"model": str(tmp_path / str(number))} for number in range(3)]
    merged = prune.merge({**keys(place), "models": all_three, "chat_template": "auto"})
    assert merged.files["chat_template.jinja"].read_text() == "b {{ messages }}"


@pytest.mark.parametrize(
    ("row", "said"),
    [(20, "has the tokens 0 to 12, and no 20"), (-1, "and no -1"), (13, "and no 13"), ("a", "must be a whole number")],
)
def test_a_token_id_that_the_model_has_not_is_refused(place: Path, row: Any, said: str) -> None:
    tokens = {"x": {"source": {"kind": "model_token", "model": str(place / "one"), "token_id": row}}}
    with pytest.raises(PruneError, match=said):
        prune.merge(keys(place, tokenizer={"source": "union", "tokens": tokens}))


@pytest.mark.parametrize("spelt", ["False", "false", "no", False, 0])
def test_force_says_no_by_every_word_for_it(place: Path, spelt: Any) -> None:
    tokens = {"w9": {"source": {"kind": "zero"}, "force": spelt}}
    rows = prune.merge(keys(place, tokenizer={"source": "union", "tokens": tokens})).tensors.read(
        "model.embed_tokens.weight"
    )
    assert rows[ONE.index("w9")].any()
    tokens["w9"]["force"] = "perhaps"
    with pytest.raises(PruneError, match=r"tokens.w9.force: must be true or false, not 'perhaps'"):
        prune.merge(keys(place, tokenizer={"source": "union", "tokens": tokens}))


def test_a_token_of_no_model_is_told(place: Path) -> None:
    merged = prepare(keys(place, tokenizer={"source": "union", "tokens": {"x": {}, "z": {"source": {"kind": "zero"}}}}))
    (said,) = merged.plan.warnings
    assert "tokenizer.tokens.x: no model has an embedding of 'x', so it is zero" in said and "'z'" not in said


@pytest.mark.parametrize("tied", [False, True])
def test_a_bias_that_the_module_names_twice_is_aligned_under_both(tmp_path: Path, tied: bool) -> None:
    for name, words, seed in (("one", ONE, 0), ("two", TWO[:-1], 1)):
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=len(words),
            hidden_size=48,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=8,
            tie_word_embeddings=tied,
        )
        module = BertForMaskedLM(config)
        for own in {module.cls.predictions.bias, module.cls.predictions.decoder.bias}:
            torch.nn.init.normal_(own)
        prune.save(prune.open(module), tmp_path / name)
        with_tokenizer(tmp_path / name, words)
    merged = prune.merge(keys(tmp_path, tokenizer_source="union"))
    rows = merged.tensors.read("cls.predictions.bias")
    one, two = (prune.open(tmp_path / name).tensors.read("cls.predictions.bias") for name in ("one", "two"))
    vocabulary = merged.tokenizer().get_vocab()
    assert len(rows) == len(vocabulary) == merged.config.vocab_size
    torch.testing.assert_close(rows[vocabulary["w3"]], (one[ONE.index("w3")] + two[TWO.index("w3")]) / 2)
    prune.save(merged, tmp_path / "out")
    assert prune.open(tmp_path / "out").config.vocab_size == 14


def test_rows_that_only_pad_are_refused_with_what_to_do(tmp_path: Path) -> None:
    made(tmp_path / "one", ONE, 0)
    made(tmp_path / "two", ONE, 1, vocab_size=16)
    with pytest.raises(PruneError, match=r"shape \[16, 48\], and \[13, 48\].*tokenizer_source: base brings all"):
        prune.merge(keys(tmp_path))
    assert prune.merge(keys(tmp_path, tokenizer_source="base")).config.vocab_size == 13
    padded = prune.merge(keys(tmp_path, tokenizer={"source": "base", "pad_to_multiple_of": 16}))
    assert padded.config.vocab_size == 16


MOVED = ["<unk>", "new", "</s>x", "<s>", "</s>", *(f"w{number}" for number in range(8))]


def test_special_tokens_have_the_numbers_of_the_tokenizer_that_is_taken(tmp_path: Path) -> None:
    made(tmp_path / "one", ONE, 0)
    made(tmp_path / "two", MOVED, 1, bos_token_id=3, eos_token_id=4)
    settings = {"bos_token_id": 1, "eos_token_id": [2, 5], "temperature": 0.5}
    (tmp_path / "one" / "generation_config.json").write_text(json.dumps(settings))
    prepared = prepare(keys(tmp_path, tokenizer_source=str(tmp_path / "two")))
    assert prepared.model.tokenizer().get_vocab()["new"] == 1
    prune.save(prepared.model, tmp_path / "out")
    config = prune.open(tmp_path / "out").config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (3, 4, None)
    assert prepared.record["special_tokens"] == {"bos_token_id": 3, "eos_token_id": 4}
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert written == {"bos_token_id": 3, "eos_token_id": [4, MOVED.index("w2")], "temperature": 0.5}
    kept = prepare(keys(tmp_path, tokenizer_source=str(tmp_path / "one")))
    assert "special_tokens" not in kept.record and kept.model.config.eos_token_id == 2


def test_a_tokenizer_may_come_from_a_folder_that_is_none_of_the_models(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*ONE[:3], "w9", "w1", "fresh"]
    (tmp_path / "beside").mkdir()
    with_tokenizer(tmp_path / "beside", words)
    text = (
        "merge_method: linear\nparameters: {weight: 1}\ntokenizer_source: beside\n"
        f"models:\n- model: {place / 'one'}\n- model: {place / 'two'}\n"
    )
    (tmp_path / "c.yml").write_text(text)
    merged = prepare(tmp_path / "c.yml")
    rows = merged.model.tensors.read("model.embed_tokens.weight")
    one, two = (prune.open(place / who).tensors.read("model.embed_tokens.weight") for who in ("one", "two"))
    torch.testing.assert_close(rows[4], (one[ONE.index("w1")] + two[TWO.index("w1")]) / 2)
    torch.testing.assert_close(rows[3], one[ONE.index("w9")])
    assert len(rows) == 6 and "no model has an embedding of 'fresh'" in merged.plan.warnings[0]
    assert "tokenizer.json" in of_config(str(tmp_path / "c.yml"))["beside"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yml").write_text(text.replace("beside", "models/nobody"))
    with pytest.raises(PruneError, match=r"c.yml:3:19 tokenizer_source: no model folder 'models/nobody'"):
        prune.merge(tmp_path / "c.yml")


def test_exaones_format_begins_with_a_system_turn_and_ends_those_of_the_assistant(place: Path) -> None:
    alone = {"merge_method": "passthrough", "models": [{"model": str(place / "one")}], "chat_template": "exaone"}
    tokenizer = prune.merge(alone).tokenizer()
    turns = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    said = "[|user|]a\n[|assistant|]b[|endofturn|]\n[|user|]c\n[|assistant|]"
    told = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert told == f"[|system|][|endofturn|]\n{said}"
    system = [{"role": "system", "content": "s"}, *turns]
    told = tokenizer.apply_chat_template(system, tokenize=False, add_generation_prompt=True)
    assert told == f"[|system|]s[|endofturn|]\n{said}"
