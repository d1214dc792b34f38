"""Tokenizers as llama.cpp takes them; those it would read otherwise are refused, or come with a warning."""

from __future__ import annotations

import json
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import prune
from prune.errors import PruneError
from prune.exports.llamacpp.pretokenizers import known
from prune.exports.llamacpp.vocabulary import SPACE, UNREACHED, Type, Vocabulary, vocabulary
from tests.exports import ggufs


def made(tokenizer: PreTrainedTokenizerFast, folder: Path) -> Vocabulary:
    return vocabulary(prune.open(ggufs.folder("llama", folder, tokenizer)))


def test_byte_level(tmp_path: Path) -> None:
    tokenizer = ggufs.byte_level("qwen2")
    found = made(tokenizer, tmp_path)
    assert (found.model, found.pre, found.scores) == ("gpt2", "qwen2", [])
    assert found.special == {"unk": 0, "bos": 1, "eos": 2, "pad": 0} and found.adds == {"bos": False, "eos": False}
    assert found.template == ggufs.TEMPLATE
    assert found.notes == ()
    form = json.loads(tokenizer.backend_tokenizer.to_str())
    assert found.merges == [" ".join(pair) for pair in form["model"]["merges"]]
    assert [found.tokens[i] for i in range(len(tokenizer))] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    types = {name: found.types[tokenizer.convert_tokens_to_ids(name)] for name in ("<unk>", "</s>", "<keep me>", "a")}
    assert types == {"<unk>": Type.CONTROL, "</s>": Type.CONTROL, "<keep me>": Type.USER_DEFINED, "a": Type.NORMAL}


def test_every_row_of_the_embedding_has_a_token(tmp_path: Path) -> None:
    tokenizer = ggufs.byte_level()
    found = made(tokenizer, tmp_path)
    assert len(found.tokens) == len(found.types) == len(set(found.tokens)) == 400 > len(tokenizer)
    assert found.tokens[-1] == "[PAD399]" and found.types[-1] == Type.UNUSED


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece(prefix: bool, tmp_path: Path) -> None:
    """Joining the pair with the highest score, again and again, gives what the merges give."""
    tokenizer = ggufs.sentencepiece(prefix)
    found = made(tokenizer, tmp_path)
    assert (found.model, found.pre, found.merges, found.prefix) == ("llama", "default", [], prefix)
    assert found.types.count(Type.BYTE) == 256 and found.types[0] == Type.UNKNOWN
    ids = {token: row for row, token in enumerate(found.tokens)}
    for text in ("The quick brown fox", "jumps over 12345", "return x"):
        pieces = list((SPACE if prefix else "") + text.replace(" ", SPACE))
        while True:
            pairs = [(found.scores[ids[a + b]], -i) for i, (a, b) in enumerate(pairwise(pieces)) if a + b in ids]
            if not pairs or max(pairs)[0] == UNREACHED:
                break
            at = -max(pairs)[1]
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        rows = [[ids[piece]] if piece in ids else [ids[f"<0x{b:02X}>"] for b in piece.encode()] for piece in pieces]
        assert list(chain.from_iterable(rows)) == tokenizer.encode(text)


def test_a_first_token_is_added_where_the_tokenizer_adds_one(tmp_path: Path) -> None:
    from tokenizers import processors

    tokenizer = ggufs.byte_level()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    assert made(tokenizer, tmp_path / "one").adds == {"bos": True, "eos": False}
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> <unk> $A", special_tokens=[("<s>", 1), ("<unk>", 0)]
    )
    found = made(tokenizer, tmp_path / "two")
    assert found.adds["bos"] is False and "puts tokens around a text" in found.notes[0]


def changed(tokenizer: PreTrainedTokenizerFast, **parts: Any) -> PreTrainedTokenizerFast:
    for part, value in parts.items():
        setattr(tokenizer.backend_tokenizer, part, value)
    return tokenizer


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)}, "no space before the text"),
        (
            {"pre_tokenizer": pre_tokenizers.WhitespaceSplit()},
            "its pre-tokenizer is none that llama.cpp has a name for",
        ),
        ({"normalizer": normalizers.Lowercase()}, "llama.cpp has no normalizer Lowercase"),
    ],
)
def test_refused(parts: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(PruneError, match=why):
        made(changed(ggufs.byte_level(), **parts), tmp_path)


def test_other_models_are_refused(tmp_path: Path) -> None:
    core = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    with pytest.raises(PruneError, match="it is WordPiece, and what is carried is BPE"):
        made(PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]"), tmp_path)


def test_a_model_without_tokenizer_is_refused(llama_folder: Path) -> None:
    with pytest.raises(PruneError, match="no tokenizer files"):
        vocabulary(prune.open(llama_folder))


def test_what_comes_with_a_warning(tmp_path: Path) -> None:
    composed = changed(ggufs.byte_level(), normalizer=normalizers.NFC())
    assert "does not compose characters (NFC)" in made(composed, tmp_path / "one").notes[0]
    form = json.loads(ggufs.byte_level().backend_tokenizer.to_str())
    form["model"]["ignore_merges"] = True
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(form)), eos_token="</s>")
    assert "that the tokenizer takes whole (ignore_merges)" in made(words, tmp_path / "four").notes[0]
    greedy = ggufs.byte_level()
    greedy.add_tokens([json_token("<|end|>", rstrip=True)], special_tokens=True)
    assert "keeps the spaces beside <|end|>" in made(greedy, tmp_path / "two").notes[0]
    core = json.loads(ggufs.sentencepiece().backend_tokenizer.to_str())
    core["model"]["vocab"] = {
        f"x{row}" if name.startswith("<0x") else name: row for name, row in core["model"]["vocab"].items()
    }
    bare = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(core)), eos_token="</s>", bos_token="<s>"
    )
    assert "has no byte tokens: llama.cpp aborts" in made(bare, tmp_path / "three").notes[0]


def json_token(content: str, **flags: bool) -> Any:
    from tokenizers import AddedToken

    return AddedToken(content, **flags)


@pytest.mark.parametrize("name", ggufs.PRE)
def test_every_way_to_split_is_known_by_its_name(name: str) -> None:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = ggufs.PRE[name]
    assert known(json.loads(core.to_str())["pre_tokenizer"]) == name
