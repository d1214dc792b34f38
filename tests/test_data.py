"""Laws of token batches: the same seed gives the same windows, and evaluation counts every token exactly once."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from functools import partial
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from prune.data import PYTHON_DOCS, batches, check, describe, fingerprint, windows
from prune.errors import PruneError

BOS, EOS, PAD = 256, 257, 258
TEXTS = [f"document {index} says: {'word ' * (index % 7)}end" for index in range(60)]


def byte_tokenizer(*, opens: bool = False) -> PreTrainedTokenizerFast:
    """One token per byte, so that counts can be known; with `opens` it begins every text with BOS, as Llama's does."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_only = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    bytes_only.add_special_tokens(["<s>", "</s>", "<pad>"])
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    if opens:
        bytes_only.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bytes_only, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=64
    )


TOKENIZER = byte_tokenizer()


def write(folder: Path, suffix: str, texts: list[str], field: str = "text") -> Path:
    """`texts` as a file of that kind."""
    path = folder / f"corpus{suffix}"
    rows = [{"id": index, field: text} for index, text in enumerate(texts)]
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text("\n".join(texts) if suffix == ".txt" else json.dumps(rows))
    return path


def rows(found: list[dict], key: str = "input_ids") -> list[list[int]]:
    return [row for batch in found for row in batch[key].tolist()]


def same(a: list[dict], b: list[dict]) -> bool:
    return len(a) == len(b) and all(torch.equal(x[key], y[key]) for x, y in zip(a, b, strict=True) for key in x)


def test_shapes_and_types():
    found = batches(TEXTS, TOKENIZER, samples=10, length=16, batch_size=4)
    assert [batch["input_ids"].shape for batch in found] == [(4, 16), (4, 16), (2, 16)]
    for batch in found:
        assert set(batch) == {"input_ids", "attention_mask", "labels"}
        assert all(tensor.dtype == torch.int64 for tensor in batch.values())
        assert torch.equal(batch["labels"], batch["input_ids"])
        assert batch["attention_mask"].all()


@pytest.mark.parametrize("source", [TEXTS, PYTHON_DOCS], ids=["memory", PYTHON_DOCS])
def test_the_seed_decides(source):
    def draw(seed: int) -> list[dict]:
        torch.manual_seed(seed + 7)  # nothing outside has a say
        return batches(source, TOKENIZER, samples=8, length=32, seed=seed)

    assert same(draw(0), draw(0))
    assert not same(draw(0), draw(1))


@given(texts=st.lists(st.text(max_size=80), max_size=8), length=st.integers(3, 20), seed=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_all_windows_can_be_had_and_not_one_more(texts, length, seed):
    """Short documents are not cut, so tokens are bytes and one end between documents, in whatever order."""
    kept = [text for text in texts if text.strip()]
    total = sum(len(text.encode()) for text in kept) + max(0, len(kept) - 1)
    there = total // length
    long = all(len(text) <= 8 * length for text in kept)
    if long and there:
        assert len(rows(batches(texts, TOKENIZER, samples=there, length=length, seed=seed))) == there
    if long:
        with pytest.raises(PruneError, match=f"gives {there} windows of {length} tokens, {there + 1} were asked"):
            batches(texts, TOKENIZER, samples=there + 1, length=length, seed=seed)


def test_samples_of_one_long_text_come_from_all_of_it():
    text = "".join(f"{index:06d} " for index in range(20_000))
    drawn = [TOKENIZER.decode(row) for row in rows(batches([text], TOKENIZER, samples=400, length=64))]
    quarters = Counter(int(re.findall(r"\b\d{6}\b", words)[0]) // 5_000 for words in drawn)
    assert len(quarters) == 4
    assert max(quarters.values()) <= 200


def test_only_what_is_needed_is_tokenised():
    seen = []

    class Counting(PreTrainedTokenizerFast):
        def __call__(self, text, **options):
            seen.append(len(text))
            return super().__call__(text, **options)

    counting = Counting(tokenizer_object=TOKENIZER.backend_tokenizer, eos_token="</s>")
    batches(["text " * 20] * 5_000, counting, samples=4, length=50)
    assert sum(seen) < 1_000


def test_long_texts_are_tokenised_without_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        batches(["long " * 2_000], TOKENIZER, samples=4, length=128)
        windows(["long " * 2_000], TOKENIZER, length=128)
    assert not caplog.records


def predicted(found: list[dict]) -> list[int]:
    """The tokens that a causal loss predicts: labels after the first position."""
    return [label for row in rows(found, "labels") for label in row[1:] if label != -100]


@given(
    texts=st.lists(st.text(max_size=60), min_size=1, max_size=5).filter(lambda texts: any(t.strip() for t in texts)),
    length=st.integers(4, 24),
    share=st.floats(0, 1),
    opens=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_every_token_is_predicted_exactly_once(texts, length, share, opens):
    tokenizer = byte_tokenizer(opens=opens)
    stride = 1 + int(share * (length - 3))
    found = windows(texts, tokenizer, length=length, stride=stride, batch_size=3)
    encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts if text.strip()]
    joined = [token for ids in encoded for token in (EOS, *ids)][1:]
    assert predicted(found) == joined
    for batch in found:
        real = batch["attention_mask"].bool()
        assert (batch["input_ids"][~real] == PAD).all()
        assert (batch["labels"][~real] == -100).all()
        counted = batch["labels"] != -100
        assert torch.equal(batch["labels"][counted], batch["input_ids"][counted])
        assert not opens or (batch["input_ids"][:, 0] == BOS).all()


def test_strided_windows_see_what_came_before():
    text = "abcdefghijklmnopqrstuvwxyz"
    found = rows(windows([text], TOKENIZER, length=10, stride=4))
    assert [TOKENIZER.decode(row) for row in found[:3]] == ["</s>abcdefghi", "defghijklm", "hijklmnopq"]
    assert sum(token != PAD for token in found[-1]) <= 10
    capped = windows([text], TOKENIZER, length=10, stride=4, samples=2)
    assert rows(capped) == found[:2]


def test_windows_are_always_the_same_and_held_out_unless_asked():
    found = windows(PYTHON_DOCS, TOKENIZER, length=64, samples=5)
    assert same(found, windows(PYTHON_DOCS, TOKENIZER, length=64, samples=5, split="heldout"))
    assert not same(found, windows(PYTHON_DOCS, TOKENIZER, length=64, samples=5, split="train"))


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".json", ".parquet"])
def test_local_files(tmp_path, suffix):
    path = write(tmp_path, suffix, TEXTS)
    expected = ["\n".join(TEXTS)] if suffix == ".txt" else TEXTS
    for source in (path, str(path)):
        assert same(windows(source, TOKENIZER, length=32), windows(expected, TOKENIZER, length=32))
        drawn = [batches(source, TOKENIZER, samples=9, length=32, seed=seed) for seed in (3, 3, 4)]
        assert same(drawn[0], drawn[1])
        assert not same(drawn[0], drawn[2])


def test_a_file_name_is_a_name_and_not_a_pattern(tmp_path):
    path = write(tmp_path, ".txt", TEXTS).rename(tmp_path / "a[b]*?.txt")
    assert rows(windows(path, TOKENIZER, length=32))


def test_reading_leaves_nothing_behind(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    batches(write(tmp_path, ".jsonl", TEXTS), TOKENIZER, samples=2, length=32)
    assert not list(cache.iterdir())


def test_a_changed_file_is_read_anew(tmp_path):
    path = write(tmp_path, ".jsonl", TEXTS)
    before, print_before = windows(path, TOKENIZER, length=32), fingerprint(path)
    write(tmp_path, ".jsonl", [text.upper() for text in TEXTS])
    assert not same(before, windows(path, TOKENIZER, length=32))
    assert print_before != fingerprint(path)


def test_another_field_and_nulls(tmp_path):
    path = write(tmp_path, ".jsonl", TEXTS, field="content")
    path.write_text(path.read_text() + '{"id": 61, "content": null}\n')
    found = windows(path, TOKENIZER, length=32, field="content")
    assert same(found, windows(TEXTS, TOKENIZER, length=32))


BROKEN = {
    "missing.txt": (None, "no such file"),
    "folder": ("/", "is a folder"),
    "empty.jsonl": (b"", "is empty"),
    "table.tsv": (b"text\nhello\n", "'.tsv'.*choices: .csv, .json, .jsonl, .parquet, .txt"),
    "nofield.jsonl": (b'{"texts": "a", "id": 1}\n', "'text'.*did you mean 'texts'.*choices: id, texts"),
    "numbers.jsonl": (b'{"text": 5}\n', "field 'text' holds int"),
    "blank.jsonl": (b"\n\n", "gives"),
    "broken.jsonl": (b'{"text": "a"}\n{"text": \n', "cannot be read"),
    "broken.json": (b"[1, 2", "cannot be read"),
    "broken.parquet": (b"PAR1 and no more", "cannot be read"),
    "latin.txt": (b"\xff\xfe\xf1", "cannot be read"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("read", [partial(batches, samples=1), windows], ids=["batches", "windows"])
def test_a_file_that_cannot_be_used_is_named_in_one_line(tmp_path, caplog, name, read):
    content, said = BROKEN[name]
    path = tmp_path / name
    if content == "/":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(PruneError, match=said) as caught:
        read(str(path), TOKENIZER, length=8)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not caplog.records


def test_what_can_be_known_at_once(tmp_path):
    for name in ("missing.txt", "empty.jsonl", "table.tsv"):
        path = tmp_path / name
        if BROKEN[name][0] is not None:
            path.write_bytes(BROKEN[name][0])
        with pytest.raises(PruneError, match=BROKEN[name][1]):
            check(path)
    with pytest.raises(PruneError, match=r"python-dogs.*did you mean 'python-docs'"):
        check("python-dogs")
    with pytest.raises(PruneError, match="choices: heldout, train"):
        check(PYTHON_DOCS, split="validation")
    with pytest.raises(PruneError, match="has no splits"):
        check(write(tmp_path, ".txt", TEXTS), split="train")
    with pytest.raises(PruneError, match="not a list of texts"):
        check(["text", 3])
    check(PYTHON_DOCS)
    check("owner/name:config@main")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"samples": 0, "length": 8}, "samples is 0"),
        ({"samples": 1, "length": 1}, "length is 1"),
        ({"samples": 1, "length": 8, "batch_size": 0}, "batch_size is 0"),
        ({"samples": 100, "length": 1_000}, "gives 2 windows of 1000 tokens, 100 were asked"),
    ],
)
def test_impossible_numbers(options, said):
    with pytest.raises(PruneError, match=said):
        batches(TEXTS, TOKENIZER, **options)


@pytest.mark.parametrize("stride", [0, 8])
def test_impossible_strides(stride):
    with pytest.raises(PruneError, match=f"stride is {stride}; choices: 1 to 7"):
        windows(TEXTS, TOKENIZER, length=8, stride=stride)


def test_a_missing_path_never_goes_to_the_network(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("went to the network"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("missing.txt", "data/corpus", "./corpus", "owner/file.jsonl", str(tmp_path / "corpus")):
        with pytest.raises(PruneError, match="no such file"):
            batches(name, TOKENIZER, samples=1, length=8)


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_datasets(monkeypatch, streaming):
    asked = []

    def load_dataset(*names, **options):
        asked.append((names, options))
        whole = datasets.Dataset.from_list([{"text": text} for text in TEXTS])
        return whole.to_iterable_dataset() if options["streaming"] else whole

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    options = {"samples": 9, "length": 32, "streaming": streaming}
    found = batches("owner/name:config@v1", TOKENIZER, **options)
    assert asked == [(("owner/name", "config"), {"split": "train", "revision": "v1", "streaming": streaming})]
    assert same(found, batches("owner/name:config@v1", TOKENIZER, **options))
    assert not same(found, batches("owner/name:config@v1", TOKENIZER, seed=1, **options))
    assert same(windows("owner/name", TOKENIZER, length=32), windows(TEXTS, TOKENIZER, length=32))
    assert asked[-1][1]["split"] == "test"


def test_a_hub_dataset_that_cannot_be_had(monkeypatch):
    def load_dataset(*_, **__):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'owner/name' doesn't exist\non the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(PruneError, match="owner/name: cannot be read: Dataset 'owner/name' doesn't exist on the Hub"):
        batches("owner/name", TOKENIZER, samples=1, length=8)


def test_descriptions(tmp_path):
    path = write(tmp_path, ".jsonl", TEXTS)
    assert describe(PYTHON_DOCS) == {"data": PYTHON_DOCS, "split": "heldout"}
    assert describe(PYTHON_DOCS, split="train")["split"] == "train"
    assert describe(path, field="content") == {"data": str(path), "field": "content"}
    assert describe("owner/name") == {"data": "owner/name", "split": "test", "field": "text"}
    assert describe(TEXTS) == {"data": "60 texts in memory"}


def test_fingerprints(tmp_path):
    path = write(tmp_path, ".txt", TEXTS)
    every = [
        fingerprint(PYTHON_DOCS),
        fingerprint(PYTHON_DOCS, split="train"),
        fingerprint(PYTHON_DOCS, split="heldout"),
        fingerprint(path),
        fingerprint(TEXTS),
        fingerprint(TEXTS[1:]),
        fingerprint("owner/name"),
        fingerprint("owner/name@v2"),
    ]
    assert len(set(every)) == len(every)
    assert fingerprint("owner/name") == "owner/name@main"
    assert fingerprint(path.rename(tmp_path / "moved.txt")) == every[3]


@pytest.mark.parametrize("opens", [False, True])
@pytest.mark.parametrize("stride", [None, 3])
def test_separate_documents_see_nothing_of_each_other(opens, stride):
    tokenizer = byte_tokenizer(opens=opens)
    options = {"length": 8, "stride": stride, "documents": "separate", "batch_size": 1}
    alone = [window for text in TEXTS[:4] for window in windows([text], tokenizer, **options)]
    found = windows(TEXTS[:4], tokenizer, **options)
    assert all(same([one], [other]) for one, other in zip(found, alone, strict=True))
    counted = [label for window in found for label in window["labels"][0].tolist() if label != -100]
    assert counted == [token for text in TEXTS[:4] for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert same(windows(TEXTS[:4], tokenizer, samples=3, **options), found[:3])


def test_documents_are_joined_or_separate():
    with pytest.raises(PruneError, match="unknown way to treat documents 'seperate'; did you mean 'separate'?"):
        windows(TEXTS, TOKENIZER, length=8, documents="seperate")


WIKITEXT = [
    "",
    " = One = \n",
    "",
    " first words \n",
    " = = Part = = \n",
    " more \n",
    "",
    " = Two = \n",
    " last words \n",
]


def hub(monkeypatch, texts, asked):
    def load_dataset(*names, **options):
        asked.append((names, options))
        whole = datasets.Dataset.from_list([{"text": text} for text in texts])
        return whole.to_iterable_dataset() if options["streaming"] else whole

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


def test_wikitext_by_name_is_articles(monkeypatch):
    asked = []
    hub(monkeypatch, WIKITEXT, asked)
    articles = ["".join(WIKITEXT[:7]), "".join(WIKITEXT[7:])]
    found = windows("wikitext", TOKENIZER, length=8)
    assert asked == [
        (("Salesforce/wikitext", "wikitext-2-raw-v1"), {"split": "test", "revision": None, "streaming": False})
    ]
    assert same(found, windows(articles, TOKENIZER, length=8))
    assert same(
        windows("wikitext", TOKENIZER, length=8, documents="separate"),
        windows(articles, TOKENIZER, length=8, documents="separate"),
    )
    assert describe("wikitext") == {
        "data": "Salesforce/wikitext:wikitext-2-raw-v1",
        "split": "test",
        "field": "text",
    }
    batches("wikitext", TOKENIZER, samples=1, length=8)
    assert asked[-1][1]["split"] == "train"


def test_c4_by_name_is_streamed_and_bounded(monkeypatch):
    asked = []
    hub(monkeypatch, TEXTS * 40, asked)
    found = windows("c4", TOKENIZER, length=4)
    assert asked == [(("allenai/c4", "en"), {"split": "validation", "revision": None, "streaming": True})]
    assert sum(len(batch["input_ids"]) for batch in found) == 256
    assert same(windows("c4", TOKENIZER, length=4, samples=5), windows(TEXTS, TOKENIZER, length=4, samples=5))
    assert fingerprint("c4", split="validation") == "allenai/c4:en@main#validation"


def test_csv_files(tmp_path):
    path = tmp_path / "text.csv"
    path.write_text("text,other\n" + "".join(f'"{text}",1\n' for text in TEXTS[:3]), encoding="utf-8")
    assert same(windows(path, TOKENIZER, length=8), windows(TEXTS[:3], TOKENIZER, length=8))
