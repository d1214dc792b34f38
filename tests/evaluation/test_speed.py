"""Latency: every model is run equally often and in turn, on the same tokens, for about as long as was asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from prune.evaluation import speed
from prune.evaluation.speed import forward_latency
from tests import zoo
from tests.tiny import tiny_model


class Clock:
    """Time that passes only in forward passes, by the given seconds each, models in turn."""

    def __init__(self, *seconds: float):
        self.seconds, self.now, self.seen = seconds, 0.0, list[tuple[PreTrainedModel, dict[str, Any]]]()

    def perf_counter(self) -> float:
        return self.now

    def advance(self, model: PreTrainedModel, _: Any, inputs: dict[str, Any]) -> None:
        self.now += self.seconds[len(self.seen) % len(self.seconds)]
        self.seen.append((model, inputs))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def pair() -> dict[str, PreTrainedModel]:
    return {"before": tiny_model("llama", vocab_size=96), "after": tiny_model("llama", vocab_size=80)}


@pytest.fixture
def clock(pair: dict[str, PreTrainedModel], monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock(0.5, 0.25)
    monkeypatch.setattr(speed, "time", clock)
    handles = [model.register_forward_pre_hook(clock.advance, with_kwargs=True) for model in pair.values()]
    yield clock
    for handle in handles:
        handle.remove()


@pytest.mark.usefixtures("clock")
def test_medians_quartiles_and_ratio(pair: dict[str, PreTrainedModel]) -> None:
    found = forward_latency(pair, batch=2, length=5, seconds=7.5)
    assert found["latency_seconds"] == {"before": 0.5, "after": 0.25}
    assert found["latency_spread"] == {"before": [0.5, 0.5], "after": [0.25, 0.25]}
    assert found["latency_ratio"] == 0.5
    assert found["latency_of"] == {"batch": 2, "length": 5, "rounds": 10, "device": "cpu"}


def test_models_take_turns_on_the_same_tokens(pair: dict[str, PreTrainedModel], clock: Clock) -> None:
    forward_latency(pair, length=5, seconds=0)
    models = [model for model, _ in clock.seen]
    assert models == [*pair.values()] * (1 + speed.LEAST)
    tokens = [inputs["input_ids"] for _, inputs in clock.seen]
    assert all(torch.equal(tokens[0], other) for other in tokens)
    assert tokens[0].shape == (1, 5)
    assert tokens[0].max() < 80


def test_tokens_follow_the_seed_and_no_one_elses(pair: dict[str, PreTrainedModel], clock: Clock) -> None:
    state = torch.get_rng_state()
    for seed in (0, 0, 1):
        forward_latency(pair, length=8, seconds=0, seed=seed)
    first, again, other = (inputs["input_ids"] for _, inputs in clock.seen[:: 2 * (1 + speed.LEAST)])
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.usefixtures("clock")
def test_rounds_are_bounded(pair: dict[str, PreTrainedModel], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "MOST", 7)
    assert forward_latency(pair, length=2, seconds=1e9)["latency_of"]["rounds"] == 7


@pytest.mark.parametrize("name", ["bert", "gpt2", "roberta", "t5", "vit"])
def test_any_kind_of_model_within_its_positions(name: str) -> None:
    model = zoo.module(name)
    found = forward_latency({"model": model}, seconds=0)
    assert found["latency_seconds"]["model"] > 0
    assert found["latency_ratio"] == 1
