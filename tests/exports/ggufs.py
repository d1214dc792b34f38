"""Tiny models with tokenizers of their own, as an export to GGUF meets them, and awkward text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import prune
from prune.exports.llamacpp import container
from prune.exports.llamacpp.pretokenizers import SPLITS
from prune.model.model import Model
from prune.remove.cut import cut
from tests.tiny import tiny_model

TEMPLATE = "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}</s>{% endfor %}"
SPECIAL = ("<unk>", "<s>", "</s>")
TEXT = (
    "The quick brown fox's 12345 jumps; over 99 lazy dogs! don't we'll they've I'm HE'S WE'RE \n\n\n  def f(x):\n"
    "\treturn x ** 2  # caf\u00e9 na\u00efve \u00dcber stra\u00dfe \u4f60\u597d\u4e16\u754c \ud55c\uad6d\uc5b4 "
    "\u0e20\u0e32\u0e29\u0e32 \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 https://example.org/a/b?c=d \r\n"
) * 3
ASCII = TEXT.encode("ascii", "ignore").decode()  # tokens that are whole characters each
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
# llama.cpp's name of a way to split text -> that way
PRE: Mapping[str, Any] = {
    "gpt-2": WORDS,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), WORDS]),
    **{
        name: pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), BYTES])
        for pattern, name in SPLITS.items()
    },
}


def byte_level(pre: str = "gpt-2", vocabulary: int = 384, text: str = TEXT) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on a little text."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = PRE[pre]
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet()) if text is TEXT else []
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[*SPECIAL], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator([text], trainer)
    return _dressed(core)


def sentencepiece(prefix: bool = True, vocabulary: int = 384) -> PreTrainedTokenizerFast:
    """A SentencePiece-like BPE tokenizer with byte tokens, trained on a little text."""
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always" if prefix else "never")
    special = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=special, show_progress=False, limit_alphabet=60)
    core.train_from_iterator([TEXT], trainer)
    form = json.loads(core.to_str())
    form["added_tokens"] = form["added_tokens"][:3]  # byte tokens are no special ones
    steps: list[Any] = [normalizers.Replace(" ", "\u2581")]
    form["pre_tokenizer"] = None
    core = Tokenizer.from_str(json.dumps(form))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), *steps] if prefix else steps)
    core.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return _dressed(core)


def _dressed(core: Tokenizer) -> PreTrainedTokenizerFast:
    core.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    core.add_tokens([AddedToken("<keep me>", normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    )


ROPES: Mapping[str, dict[str, Any]] = {
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "yarn": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [1.0, 2.0, 3.0, 4.0],
        "factor": 4.0,
        "original_max_position_embeddings": 96,
    },
}
COMMON: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
GEMMA = {"tie_word_embeddings": True, "sliding_window": 24}
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("llama", {}, {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}, {}),
    "llama wide heads": ("mistral", {"head_dim": 16, "sliding_window": None}, {}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True}, {}),
    **{f"llama {kind}": ("llama", {"rope_parameters": rope}, {}) for kind, rope in ROPES.items()},
    "llama fewer heads": ("llama", {}, {f"layers.{i}.heads": [0, 1, 3] for i in range(3)}),
    "llama by layer": (
        "llama",
        {},
        {"layers.0.heads": [1, 2], "layers.1.channels": list(range(0, 40, 2)), "layers.2.heads": [3]},
    ),
    "llama by layer biases": (
        "llama",
        {"attention_bias": True, "mlp_bias": True, "rope_parameters": ROPES["llama3"]},
        {"layers.0.heads": [1, 2], "layers.1.channels": list(range(0, 40, 2))},
    ),
    "llama without sublayers": (
        "llama",
        {"num_hidden_layers": 5},
        {"attention": [0, 2, 3], "mlp": [0, 1, 3, 4], "layers.3.channels": list(range(24))},
    ),
    "llama without the first attention": ("llama", {}, {"attention": [1], "mlp": [0, 2]}),
    "llama narrower": ("llama", {"tie_word_embeddings": True}, {"width": list(range(0, 64, 2))}),
    "mistral": ("mistral", {"sliding_window": None}, {}),
    "mistral window": ("mistral", {"sliding_window": 64}, {}),
    "seed_oss": ("seed_oss", {"attention_bias": True, "attention_out_bias": True, "mlp_bias": True}, {}),
    "qwen2": ("qwen2", {}, {}),
    "qwen2 fewer channels": ("qwen2", {}, {f"layers.{i}.channels": list(range(24)) for i in range(3)}),
    "qwen2 fewer heads": ("qwen2", {}, {f"layers.{i}.heads": [0, 2, 3] for i in range(3)}),
    "qwen2 by layer": ("qwen2", {}, {"layers.0.heads": [1, 2], "layers.2.channels": list(range(8))}),
    "qwen2 without sublayers": ("qwen2", {}, {"attention": [0, 2], "mlp": [0, 1]}),
    "qwen2 narrower": ("qwen2", {}, {"width": list(range(48))}),
    "qwen2 yarn": ("qwen2", {"rope_parameters": ROPES["yarn"]}, {}),
    "qwen3": ("qwen3", {}, {}),
    "qwen3 fewer heads": ("qwen3", {}, {f"layers.{i}.heads": [0, 1, 3] for i in range(3)}),
    "qwen3 linear": ("qwen3", {"rope_parameters": ROPES["linear"]}, {}),
    "phi3": ("phi3", {"original_max_position_embeddings": 128}, {}),
    "phi3 window": ("phi3", {"original_max_position_embeddings": 128, "sliding_window": 64}, {}),
    "phi3 by layer": ("phi3", {"original_max_position_embeddings": 128}, {"layers.0.heads": [1, 2]}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}, {}),
    "mixtral fewer heads": (
        "mixtral",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
        {f"layers.{i}.heads": [0, 1, 3] for i in range(3)},
    ),
    "mixtral fewer experts": (
        "mixtral",
        {"num_local_experts": 4, "num_experts_per_tok": 2},
        {f"layers.{i}.experts": [0, 1, 3] for i in range(3)},
    ),
    "gemma": ("gemma", {**GEMMA, "sliding_window": None}, {}),
    "gemma fewer heads": (
        "gemma",
        {**GEMMA, "sliding_window": None},
        {f"layers.{i}.heads": [0, 1, 3] for i in range(3)},
    ),
    "gemma narrower": ("gemma", {**GEMMA, "sliding_window": None}, {"width": list(range(48))}),
    "gemma2": ("gemma2", {**GEMMA, "query_pre_attn_scalar": 12, "num_hidden_layers": 4}, {}),
    "gemma2 fewer heads": (
        "gemma2",
        {**GEMMA, "query_pre_attn_scalar": 8},
        {f"layers.{i}.heads": [0, 1, 3] for i in range(3)},
    ),
    "gemma3": ("gemma3_text", {**GEMMA, "query_pre_attn_scalar": 12, "num_hidden_layers": 7}, {}),
    "granite": (
        "granite",
        {"attention_multiplier": 0.3, "residual_multiplier": 0.5, "embedding_multiplier": 2.0, "logits_scaling": 3.0},
        {},
    ),
    "granite llama3": ("granite", {"attention_multiplier": 0.3, "rope_parameters": ROPES["llama3"]}, {}),
    "granite fewer heads": (
        "granite",
        {"attention_multiplier": 0.3, "residual_multiplier": 0.5, "attention_bias": True, "mlp_bias": True},
        {f"layers.{i}.heads": [0, 1, 3] for i in range(3)},
    ),
    "smollm3": ("smollm3", {"num_hidden_layers": 5}, {}),
    "smollm3 fewer heads": ("smollm3", {"num_hidden_layers": 5}, {f"layers.{i}.heads": [0, 1, 3] for i in range(5)}),
}


def folder(name: str, where: Path, tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    """A tiny model with a tokenizer on disk."""
    kind, changes, _ = MODELS[name]
    module = tiny_model(kind, **{**COMMON, **changes})
    head = module.get_output_embeddings().weight
    head.data[2] = 0  # the last token of a text, which ends what is generated, is never the likeliest
    module.save_pretrained(where)
    (tokenizer or byte_level(text=ASCII)).save_pretrained(where)
    return where


def opened(name: str, where: Path) -> Model:
    """A tiny model, cut as its entry says."""
    return cut(prune.open(folder(name, where)), MODELS[name][2])


GOLDEN = Path(__file__).with_name("gguf_golden.json")  # what llama.cpp said of each model's file
PROMPT = (5, 9, 100, 30, 77)
COUNT = 50  # tokens


def digest(path: Path) -> str:
    """sha256 of a file's keys and tensors, whatever the order of the keys."""
    keys, tensors = container.read(path)
    return hashlib.sha256(
        json.dumps([keys, {n: str(t) for n, t in tensors.items()}], sort_keys=True).encode()
    ).hexdigest()


def greedy(module: PreTrainedModel, prompt: Sequence[int] = PROMPT) -> tuple[list[int], list[torch.Tensor]]:
    """The tokens that a module generates, and the log-probabilities of each step."""
    tokens, steps = [*prompt], []
    with torch.no_grad():
        for _ in range(COUNT):
            steps.append(module(input_ids=torch.tensor([tokens])).logits[0, -1].log_softmax(-1))
            tokens.append(int(steps[-1].argmax()))
    return tokens[len(prompt) :], steps


def followed(module: PreTrainedModel, tokens: Sequence[int], prompt: Sequence[int] = PROMPT) -> list[int]:
    """The likeliest token after the prompt and after each of `tokens` but the last: `tokens`, where they are greedy."""
    given = torch.tensor([[*prompt, *tokens[:-1]]])
    with torch.no_grad():
        found: list[int] = module(input_ids=given).logits[0, len(prompt) - 1 :].argmax(-1).tolist()
    return found


class Table(torch.nn.Module):
    """The GELU that llama.cpp has on CPUs: within 10 of zero, looked up in a table of half precision."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inside = torch.nn.functional.gelu(x.half().to(x.dtype), approximate="tanh").half().to(x.dtype)
        return torch.where(x <= -10, torch.zeros_like(x), torch.where(x >= 10, x, inside))


def with_table(module: PreTrainedModel) -> PreTrainedModel:
    """The module with that GELU in the place of its own."""
    for part in module.modules():
        if hasattr(part, "act_fn"):
            part.act_fn = Table()
    return module


def awkward(count: int = 300, seed: int = 0) -> list[str]:
    """Strings that tokenizers stumble over: runs of spaces, marks, digits, emoji, controls, mixed scripts."""
    pieces = [
        *(" ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", " \n ", "\u00a0", "\u3000"),
        *("'s", "'S", "'ll", "don't", "\u2019s", "a", "I", "Hello", " world", "HELLO", "camelCaseWord", "x_y-z"),
        *("1", "12", "123", "1234", "3.14", "\u0663\u0664", "\u00b2", "\u2167"),
        *("!", "...", "?!", "#", "//", "=>", "`", '"', "\\", "/", "<|x|>", "<", ">", "\u2014"),
        *(
            "\u00e9",
            "na\u00efve",
            "\u00df",
            "\u4f60\u597d",
            "\u4e16\u754c\u3002",
            "\ud55c\uad6d\uc5b4",
            "\u0e20\u0e32\u0e29\u0e32",
        ),
        *(
            "\u0627\u0644\u0639",
            "\u05e2\u05d1",
            "\u0939\u093f",
            "\U0001f600",
            "\U0001f468\u200d\U0001f469",
            "\u200b",
            "\ufeff",
            "\x01",
            "\x7f",
        ),
        *("<s>", "</s>", "<keep me>", "\u2581", "\u0120"),
    ]
    choices = torch.Generator().manual_seed(seed)
    made = [*pieces]
    while len(made) < count:
        length = int(torch.randint(1, 8, (), generator=choices))
        picked = torch.randint(len(pieces), (length,), generator=choices).tolist()
        made.append("".join(pieces[i] for i in picked))
    return made
