"""The bundled text and model: nothing leaks between the splits, and the model is small, stock and trained."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors import safe_open
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from prune import bundled
from prune.bundled import text
from prune.data import windows

MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(bundled.folder(), dtype="auto").eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(bundled.folder())


def test_no_module_or_topic_is_on_both_sides():
    train, heldout = set(text.names("train")), set(text.names("heldout"))
    assert not train & heldout
    assert 0.02 < len(heldout) / len(train | heldout) < 0.1
    assert {"json.decoder", "topics.while"} <= train | heldout


def test_no_document_is_on_both_sides():
    train, heldout = text.documents("train"), text.documents("heldout")
    assert not set(train) & set(heldout)
    assert len(train) > 200
    assert len(heldout) > 10


def test_a_module_gives_its_docstrings_and_its_source():
    prose, source = text.texts("json.decoder")
    assert prose.startswith("json.decoder\n\nImplementation of JSONDecoder")
    assert "json.decoder.JSONDecoder.decode\n\nReturn the Python representation" in prose
    assert "class JSONDecoder" in source
    assert "class JSONDecoder" not in prose


def test_tests_and_other_peoples_packages_are_left_out():
    parts = {part for side in ("train", "heldout") for name in text.names(side) for part in name.split(".")}
    assert not parts & {"test", "tests", "idlelib", "torch", "pytest"}


def test_documents_are_always_the_same():
    before = text.documents("heldout"), text.fingerprint("heldout")
    text.texts.cache_clear()
    assert before == (text.documents("heldout"), text.fingerprint("heldout"))
    assert text.fingerprint("heldout") != text.fingerprint("train")


def test_the_folder_is_small_and_holds_only_safetensors():
    files = {path.name: path.stat().st_size for path in bundled.folder().iterdir()}
    assert sum(files.values()) <= 8 * MEGABYTE
    assert set(files) == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    with safe_open(bundled.folder() / "model.safetensors", "pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_the_model_is_a_stock_llama_with_grouped_queries(model):
    assert type(model) is LlamaForCausalLM
    config = model.config
    assert (config.num_attention_heads, config.num_key_value_heads) == (8, 4)
    assert config.num_attention_heads * config.head_dim == config.hidden_size
    assert config.num_hidden_layers >= 6
    assert config.intermediate_size % 64 == 0
    assert config.tie_word_embeddings
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.num_parameters() >= 2_000_000
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("words", ["def f(x):\n\treturn  x\r\n", "ünïcode ☃ 日本 \x00\x7f", " <|no-token|> 'tis , . !"])
def test_decoding_gives_back_what_was_encoded(tokenizer, words):
    assert tokenizer.decode(tokenizer(words)["input_ids"]) == words


def test_special_tokens_agree(model, tokenizer):
    assert None not in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(tokenizer, name) == getattr(model.config, name)
    assert len(tokenizer) == model.config.vocab_size


def test_held_out_text_is_far_less_surprising_than_chance(model, tokenizer):
    found = windows("python-docs", tokenizer, length=256, samples=16, split="heldout")
    with torch.no_grad():
        logits = [model(input_ids=batch["input_ids"]).logits[:, :-1].float() for batch in found]
    losses = [
        cross_entropy(guess.flatten(0, 1), batch["labels"][:, 1:].flatten())
        for guess, batch in zip(logits, found, strict=True)
    ]
    # Chance is the vocabulary's 4096; the card states what the whole of the held-out text gives.
    assert math.exp(torch.stack(losses).mean()) < 100


def test_it_says_something(model, tokenizer):
    prompt = tokenizer("def __init__(self", return_tensors="pt")
    said = tokenizer.decode(model.generate(**prompt, max_new_tokens=12, do_sample=False)[0])
    assert said.startswith("def __init__(self")
    assert ":" in said


def test_the_learning_rate_warms_up_and_comes_down():
    from prune.bundled.train import rate

    start = [rate(step, step / 10_000) for step in range(100)]
    rest = [rate(step, step / 10_000) for step in range(100, 10_001)]
    assert start == sorted(start)
    assert rest == sorted(rest, reverse=True)
    assert max(start + rest) <= 1
    assert 0 < rest[-1] < 0.02
