"""Trains the bundled model from scratch: `python -m prune.bundled.train --out DIR --minutes N`."""

from __future__ import annotations

import argparse
import math
import platform
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prune.bundled import text
from prune.data import IGNORED, windows

VOCAB = 4096
END, PAD = "<|endoftext|>", "<|pad|>"  # one token opens and closes a document, as in GPT-2
LENGTH = 256  # tokens in a training window

CARD = """\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# The bundled model

A Llama of {parameters:.2f} million parameters, trained from scratch so that pruning can be tried, tested and taught in
seconds, offline, on weights that have learned something. It knows Python's prose and code a little, and nothing else.

| | |
| --- | --- |
| Shape | {layers} layers, hidden size {hidden}, {heads} query heads in {kv_heads} groups of head size {head_dim}, \
MLP {mlp}, tied embeddings, bf16 |
| Tokenizer | byte-level BPE of {vocab} tokens, trained on the same text |
| Text | CPython {python}: the language reference topics (`pydoc_data.topics`), the standard library's docstrings \
and its source; {unique:.1f} million tokens |
| Held out | about 5 % of the topics and modules, chosen by the hash of their names; never trained on. \
Other Python versions have somewhat other text |
| Training | {seen:.1f} million tokens seen in {minutes:.0f} minutes, windows of {length} tokens, {batch} a step, \
AdamW, learning rate {lr:g} warmed up and brought down along a cosine, seed {seed} |
| Hardware | {hardware} |
| Software | {software} |
| **Held-out perplexity** | **{perplexity:.2f}** per token, windows of {length}; an untrained model's is about {vocab} |

The text is © the Python Software Foundation and others, under the
[PSF License](https://docs.python.org/3/license.html). The weights are under the licence of this project, Apache-2.0.

Trained with

```
python -m prune.bundled.train --out DIR --minutes {minutes:.0f} --batch {batch} --lr {lr:g} --seed {seed}
```

The schedule follows the clock: the same minutes on a faster machine see more text and give a better model.
"""


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of `VOCAB` tokens, learned from the train side; decoding gives back exactly what was encoded."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=[END, PAD], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(text.documents("train"), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def config(tokens: PreTrainedTokenizerFast) -> LlamaConfig:
    """Six layers of grouped-query attention, small enough to travel inside a wheel."""
    return LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=24,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )


def stream(tokens: PreTrainedTokenizerFast, generator: torch.Generator) -> Tensor:
    """The train documents in a random order as one (tokens,) int64 tensor, each closed by the end token."""
    documents = text.documents("train")
    encoded = tokens(documents, add_special_tokens=False, verbose=False)["input_ids"]
    order = torch.randperm(len(encoded), generator=generator).tolist()
    return torch.tensor([token for index in order for token in (*encoded[index], tokens.eos_token_id)])


def optimizer(model: LlamaForCausalLM, peak: float) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves norms alone."""
    matrices = [weight for weight in model.parameters() if weight.dim() == 2]
    norms = [weight for weight in model.parameters() if weight.dim() == 1]
    groups: list[dict[str, Any]] = [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.95))


def rate(step: int, fraction: float, warmup: int = 100, floor: float = 0.01) -> float:
    """The share of the peak learning rate: linear warm-up over steps, under a cosine over `fraction` of the time."""
    cosine = (1 + math.cos(math.pi * min(1.0, fraction))) / 2
    return min((step + 1) / warmup, floor + (1 - floor) * cosine)


def train(model: LlamaForCausalLM, ids: Tensor, args: argparse.Namespace, generator: torch.Generator) -> int:
    """Train `model` in place until the time is up; random windows of (batch, LENGTH). Returns the tokens seen."""
    device = next(model.parameters()).device
    step_model = torch.compile(model) if args.compile else model
    mixed = torch.autocast(device.type, dtype=torch.bfloat16) if args.autocast else nullcontext()
    adam, seen, step = optimizer(model, args.lr), 0, 0
    start = saved = time.monotonic()
    while (fraction := (time.monotonic() - start) / (60 * args.minutes)) < 1:
        for group in adam.param_groups:
            group["lr"] = args.lr * rate(step, fraction)
        places = torch.randint(len(ids) - LENGTH, (args.batch,), generator=generator)
        windows = ids[places[:, None] + torch.arange(LENGTH)].to(device)  # (batch, LENGTH)
        with mixed:
            loss = step_model(input_ids=windows, labels=windows, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        seen, step = seen + windows.numel(), step + 1
        if step % 20 == 0:
            speed = seen / (time.monotonic() - start)
            print(f"{fraction:6.1%}  step {step}  loss {loss.item():.3f}  {speed:.0f} tokens/s", flush=True)
        if args.checkpoint and time.monotonic() - saved > 600:
            model.save_pretrained(args.checkpoint)
            saved = time.monotonic()
    return seen


@torch.no_grad()
def perplexity(folder: Path) -> float:
    """exp of the mean loss per held-out token of the model in `folder`, as it is stored, in windows of `LENGTH`."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    total, count = 0.0, 0
    for batch in windows("python-docs", AutoTokenizer.from_pretrained(folder), length=LENGTH, split="heldout"):
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        labels = batch["labels"][:, 1:]
        loss = cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        total, count = total + loss.item(), count + int((labels != IGNORED).sum())
    return math.exp(total / count)


def card(folder: Path, args: argparse.Namespace, *, unique: int, seen: int, hardware: str) -> str:
    """The model card of the model in `folder`: what it is, what it learned from, how, and how well."""
    shape = LlamaConfig.from_pretrained(folder)
    parameters = AutoModelForCausalLM.from_pretrained(folder).num_parameters()
    return CARD.format(
        parameters=parameters / 1e6,
        layers=shape.num_hidden_layers,
        hidden=shape.hidden_size,
        heads=shape.num_attention_heads,
        kv_heads=shape.num_key_value_heads,
        head_dim=shape.head_dim,
        mlp=shape.intermediate_size,
        vocab=shape.vocab_size,
        python=platform.python_version(),
        unique=unique / 1e6,
        seen=seen / 1e6,
        minutes=args.minutes,
        length=LENGTH,
        batch=args.batch,
        lr=args.lr,
        seed=args.seed,
        hardware=hardware,
        software=", ".join(
            f"{library.__name__} {library.__version__}" for library in (torch, transformers, tokenizers)
        ),
        perplexity=perplexity(folder),
    )


def hardware(device: str) -> str:
    """The GPU's name, or how many cores of what kind of CPU."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return (
        f"{torch.get_num_threads()} threads of a CPU ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})"
    )


def main() -> None:
    """Learn the tokenizer, train the model, write the folder and its card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--autocast", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--compile", action="store_true", help="half as fast again on a CPU, after a minute and a half")
    parser.add_argument("--checkpoint", type=Path, help="folder for the weights so far, every ten minutes")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    tokens = tokenizer()
    ids = stream(tokens, generator)
    print(f"{len(ids)} training tokens", flush=True)
    model = LlamaForCausalLM(config(tokens)).to(args.device)
    seen = train(model, ids, args, generator)
    model.to("cpu", torch.bfloat16).save_pretrained(args.out)
    tokens.save_pretrained(args.out)
    (args.out / "README.md").write_text(
        card(args.out, args, unique=len(ids), seen=seen, hardware=hardware(args.device)), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
