"""The scorer gives the sum of the model's own token log-probabilities, however much it shares, and divides text as
lm-eval does."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import prune
from prune.errors import PruneError
from prune.evaluation.choices import WORTH, Pair, Question, answer, encode, logprobs, longest
from tests import zoo
from tests.tiny import tiny_model

MODELS: dict[str, Any] = {
    "llama": lambda: tiny_model("llama"),
    "a sliding window": lambda: tiny_model("mistral", sliding_window=6),
    "learnt positions": lambda: zoo.module("gpt2"),
    "layers with and without a window": lambda: zoo.module("gemma2"),
    "alibi": lambda: zoo.module("bloom"),
    "layers of different shapes": lambda: uneven(),
    "no attention in the first layer": lambda: without_first_attention(),
}


def uneven() -> PreTrainedModel:
    model = prune.open(tiny_model("llama"))
    return prune.load(prune.cut(model, {"layers.0.heads": [0, 2], "layers.1.channels": list(range(9))})).eval()


def without_first_attention() -> PreTrainedModel:
    """Whose cache does not know its length."""
    model = tiny_model("llama")
    model.model.layers[0].self_attn.forward = lambda hidden_states, **_: (hidden_states * 0, None)
    return model


def made_up(count: int, *, common: int, seed: int = 0, ends: tuple[int, ...] = (1, 1, 1, 2)) -> list[Pair]:
    """Questions that open with the same `common` tokens, each with choices of so many tokens as `ends` says."""
    rng = random.Random(seed)
    opening = [rng.randrange(3, 80) for _ in range(common)]
    pairs = []
    for _ in range(count):
        context = tuple(opening + [rng.randrange(3, 80) for _ in range(rng.randrange(1, 9))])
        pairs += [Pair(context, tuple(rng.randrange(3, 80) for _ in range(size))) for size in ends]
    return pairs


@torch.inference_mode()
def dense(model: PreTrainedModel, pair: Pair, limit: int) -> float:
    """sum_i log p(continuation_i | all before), of one plain forward pass over the last tokens that fit."""
    tokens = torch.tensor([(pair.context + pair.continuation)[-(limit + 1) :]])
    likely = model(input_ids=tokens[:, :-1], use_cache=False).logits.log_softmax(-1)
    chosen = likely.gather(-1, tokens[:, 1:, None])[0, :, 0]
    return chosen[-len(pair.continuation) :].sum().item()


def agree(model: PreTrainedModel, pairs: list[Pair], limit: int, **options: Any) -> None:
    found = logprobs(model, pairs, limit=limit, **options)
    assert found == pytest.approx([dense(model, pair, limit) for pair in pairs], abs=2e-5)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_equals_one_plain_pass_per_choice(name: str, share: bool) -> None:
    agree(MODELS[name](), made_up(5, common=20), 60, batch_size=3, share=share)


def test_left_truncation_beside_questions_that_fit() -> None:
    model = tiny_model("llama")
    short, long = made_up(3, common=18), made_up(3, common=40, ends=(1, 3))
    agree(model, [*long, *short], 32)


class Counted:
    """How many tokens went through a model, padding and all, and in how many calls."""

    def __init__(self, model: PreTrainedModel):
        self.tokens = self.calls = 0
        model.register_forward_pre_hook(self.count, with_kwargs=True)

    def count(self, _: Any, __: Any, given: dict[str, Any]) -> None:
        self.tokens += given["input_ids"].numel()
        self.calls += 1


def test_what_is_common_and_choices_of_one_token_are_computed_once() -> None:
    model = tiny_model("llama")
    counted, pairs = Counted(model), made_up(8, common=40, ends=(1, 1, 1, 1))
    shared = logprobs(model, pairs, limit=60, batch_size=1)
    own = sum(len(pair.context) - 40 for pair in pairs[::4])
    assert counted.calls == 1 + 8
    assert counted.tokens <= 40 + own + 8  # a last common token may be run anew
    assert shared == pytest.approx(logprobs(model, pairs, limit=60, share=False), abs=2e-5)


def test_too_little_in_common_is_not_worth_a_cache() -> None:
    model = tiny_model("llama")
    counted = Counted(model)
    logprobs(model, made_up(2, common=WORTH - 3, ends=(1,)), limit=60, batch_size=2)
    assert counted.calls == 1


def test_a_cache_that_cannot_be_shared_is_not() -> None:
    model = without_first_attention()
    counted = Counted(model)
    logprobs(model, made_up(2, common=30, ends=(1,)), limit=60, batch_size=2)
    assert counted.tokens > 30 + 2 * 30


ALPHABET = [*"qabcABCD: .\n", "<s>"]


def tokenizer(merges: list[tuple[str, str]], *, opens: bool = False) -> PreTrainedTokenizerFast:
    """One token per character, but for the merges, which cross any bound; `opens` adds <s> before every text."""
    names = [*ALPHABET, *dict.fromkeys("".join(pair) for pair in merges)]
    made = Tokenizer(BPE({name: number for number, name in enumerate(names)}, merges))
    made.pre_tokenizer = pre_tokenizers.Split("<none>", "isolated")
    made.decoder = decoders.Fuse()
    if opens:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 12)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>")


def words(chosen: PreTrainedTokenizerFast, pair: Pair) -> list[list[str]]:
    return [chosen.convert_ids_to_tokens(list(side)) for side in pair]


@pytest.mark.parametrize(
    ("merges", "context", "continuation", "expected"),
    [
        ([], "qa:", " A", [["q", "a", ":"], [" ", "A"]]),
        ([(" ", "A")], "qa:", " A", [["q", "a", ":"], [" A"]]),
        # The whole is divided otherwise than its parts: what is beyond the context's count of tokens is scored.
        ([(":", " ")], "qa:", " A", [["q", "a", ":"], ["A"]]),
        # Spaces that end the context are the continuation's.
        ([], "qa: ", "A", [["q", "a", ":"], [" ", "A"]]),
        ([(" ", "A")], "qa: ", "A", [["q", "a", ":"], [" A"]]),
        ([], "qa:\n", "A", [["q", "a", ":"], ["\n", "A"]]),
    ],
)
def test_tokens_are_divided_as_lm_eval_does(
    merges: list[tuple[str, str]], context: str, continuation: str, expected: list[list[str]]
) -> None:
    plain, opening = tokenizer(merges), tokenizer(merges, opens=True)
    assert words(plain, encode(plain, context, [continuation])[0]) == expected
    assert words(opening, encode(opening, context, [continuation])[0]) == [["<s>", *expected[0]], expected[1]]


def test_nothing_after_nothing_is_refused() -> None:
    with pytest.raises(PruneError, match="choice has no token of its own"):
        encode(tokenizer([]), "", [""])


def test_the_beginning_token_stands_once() -> None:
    opening = tokenizer([], opens=True)
    assert words(opening, encode(opening, "<s>qa:", ["A"])[0]) == [["<s>", "q", "a", ":"], ["A"]]
    assert words(opening, encode(opening, "", ["ab"])[0]) == [["<s>"], ["a", "b"]]


@pytest.mark.parametrize(("merges", "choice"), [([], ""), ([(":", " "), (": ", "A")], " A")])
def test_a_choice_without_a_token_of_its_own_is_refused(merges: list[tuple[str, str]], choice: str) -> None:
    with pytest.raises(PruneError, match="choice has no token of its own"):
        encode(tokenizer(merges), "qa:", [choice])


def test_the_likeliest_choice_is_the_answer_and_the_first_of_equals() -> None:
    model, chosen = tiny_model("llama", vocab_size=32), tokenizer([(" ", letter) for letter in "ABCD"])
    model.lm_head.weight.data[chosen.convert_tokens_to_ids([" B", " D"])] = 0.5
    asked = [Question("abc q:", (" A", " B", " C", " D"), 1), Question("abc:", (" D", " B"), 1)]
    found = answer(model, chosen, asked)
    for question, own in zip(asked, found, strict=True):
        pairs = encode(chosen, question.context, question.choices)
        assert list(own.logprobs) == pytest.approx([dense(model, pair, 64) for pair in pairs], abs=2e-5)
        assert own.logprobs[own.chosen] == max(own.logprobs)
        assert own.correct == (own.chosen == question.answer)
    assert found[1].chosen == 0  # both have one weight, so one probability


def test_the_limit_is_what_the_config_states_then_the_tokenizer() -> None:
    model, chosen = tiny_model("llama"), tokenizer([])
    assert longest(model.config, chosen) == 64
    assert longest(zoo.module("gpt2").config) == zoo.module("gpt2").config.n_positions
    assert longest(object(), chosen) == 2048
    chosen.model_max_length = 77
    assert longest(object(), chosen) == 77
