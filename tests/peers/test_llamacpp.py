"""Our GGUF files in llama.cpp itself: tokens, log-probabilities and tokenisation equal to PyTorch's and transformers'.

`python -m tests.peers.test_llamacpp` writes what llama.cpp says as golden values, which tests/exports/test_gguf.py
compares with.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

import prune
from prune.exports import gguf
from prune.exports.job import Job
from prune.model.model import Model
from prune.remove.cut import cut
from tests.exports import ggufs

CLIENT = Path(__file__).with_name("llama_cpp.py")
CLOSE = 1e-4  # largest difference of a log-probability in float32
GELU = (
    0.1  # llama.cpp looks GELU up in a table of half precision: Gemma's come as close to PyTorch with that table only
)
FIXTURES = ["llama", "as-mistral", "as-qwen2", "as-phi3", "as-mixtral-upcycled4"]


def ask(path: Path, **request: Any) -> dict[str, Any]:
    """What llama.cpp says, from a process of its own: its asserts end the process."""
    done = subprocess.run(
        [sys.executable, CLIENT],
        input=json.dumps({"model": str(path), "count": ggufs.COUNT, **request}),
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def written(model: Model, folder: Path, dtype: Any = "f32") -> Path:
    folder.mkdir(exist_ok=True)
    gguf.export(Job(model, folder), dtype=dtype)
    return folder / f"model-{dtype}.gguf"


def same(model: Model, path: Path) -> list[int]:
    """llama.cpp's tokens, after they and every log-probability it told were compared."""
    (answer,) = ask(path, prompts=[ggufs.PROMPT])["answers"]
    plain = prune.load(model, dtype=torch.float32)
    tokens, steps = ggufs.greedy(plain)
    assert answer["tokens"] == tokens
    found = differences(answer, steps)
    if "gemma" not in model.config.model_type:
        assert max(found) < CLOSE
        return tokens
    # A last bit of what is looked up may turn into a step of the table, so that a few stay as far apart.
    assert CLOSE < max(found) < GELU
    again, steps = ggufs.greedy(ggufs.with_table(plain))
    assert again == tokens
    assert median(differences(answer, steps)) < min(CLOSE, median(found) / 3)
    return tokens


def differences(answer: dict[str, Any], steps: list[torch.Tensor]) -> list[float]:
    """Those of the log-probabilities of the 20 likeliest tokens at each step."""
    assert len(answer["logprobs"]) == len(steps)
    found = [
        abs(told - float(ours[int(token)]))
        for ours, top in zip(steps, answer["logprobs"], strict=True)
        for token, told in top.items()
    ]
    assert len(found) == 20 * len(steps)
    return found


@pytest.mark.parametrize("name", ggufs.MODELS)
def test_tokens_and_log_probabilities(name: str, tmp_path: Path) -> None:
    model = ggufs.opened(name, tmp_path / "model")
    tokens = same(model, written(model, tmp_path / "gguf"))
    assert tokens == json.loads(ggufs.GOLDEN.read_text())[name]["tokens"]


def tokenised(model: Model, path: Path) -> None:
    texts, tokenizer = ggufs.awkward(), model.tokenizer()
    theirs = ask(path, texts=texts)["texts"]
    ours = [tokenizer.encode(text) for text in texts]
    assert [pair for pair in zip(texts, ours, theirs, strict=True) if pair[1] != pair[2]] == []


@pytest.mark.parametrize("pre", ggufs.PRE)
def test_byte_level_tokenisation(pre: str, tmp_path: Path) -> None:
    model = prune.open(ggufs.folder("llama", tmp_path / "model", ggufs.byte_level(pre)))
    tokenised(model, written(model, tmp_path / "gguf"))


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_tokenisation(prefix: bool, tmp_path: Path) -> None:
    model = prune.open(ggufs.folder("llama", tmp_path / "model", ggufs.sentencepiece(prefix)))
    tokenised(model, written(model, tmp_path / "gguf"))


def test_the_bundled_model_and_its_tokenizer(tmp_path: Path) -> None:
    model = prune.open("bundled")
    path = written(model, tmp_path / "gguf")
    tokenised(model, path)
    (answer,) = ask(path, prompts=[ggufs.PROMPT])["answers"]
    assert answer["tokens"] == ggufs.greedy(prune.load(model, dtype=torch.float32))[0][: len(answer["tokens"])]


def test_the_chat_template(tmp_path: Path) -> None:
    model = prune.open(ggufs.folder("llama", tmp_path / "model"))
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello <b>\n \u00e9!"}]
    theirs = ask(written(model, tmp_path / "gguf"), messages=messages)["chat"]
    assert theirs == model.tokenizer().apply_chat_template(messages, tokenize=False)


@pytest.mark.parametrize("dtype", ["f16", "bf16", "q8_0"])
def test_shorter_types_load_and_speak_alike(dtype: str, tmp_path: Path) -> None:
    """The likeliest tokens of a trained model are those of float32, whose log-probabilities move a little."""
    model = cut(prune.open("bundled"), {"layers.1.channels": list(range(500))})  # so that q8_0 has to pad
    whole, short = (ask(written(model, tmp_path / t, t), prompts=[ggufs.PROMPT], count=1) for t in ("f32", dtype))
    (one,), (other,) = (said["answers"][0]["logprobs"] for said in (whole, short))
    common = set(list(one)[:10]) & set(list(other)[:10])
    assert len(common) >= 8
    assert max(abs(one[token] - other[token]) for token in common) < 0.1


@pytest.mark.parametrize("name", FIXTURES)
def test_trained_models(name: str, tmp_path: Path, fixtures_folder: Path) -> None:
    model = prune.open(fixtures_folder / "models" / f"stories260K-{name}")
    path = written(model, tmp_path / "gguf")
    tokenised(model, path)
    prompts = [[1, 403, 407], [1, 338, 391, 409]]
    module = prune.load(model, dtype=torch.float32)
    for answer, prompt in zip(ask(path, prompts=prompts)["answers"], prompts, strict=True):
        assert answer["tokens"] == ggufs.greedy(module, prompt)[0]


def main() -> None:
    """Write the golden values."""
    found = {}
    for name in ggufs.MODELS:
        with tempfile.TemporaryDirectory() as place:
            model = ggufs.opened(name, Path(place, "model"))
            path = written(model, Path(place, "gguf"))
            tokens = same(model, path)
            found[name] = {"content": ggufs.digest(path), "tokens": tokens}
            print(name, flush=True)
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in found.items())
    ggufs.GOLDEN.write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    main()
