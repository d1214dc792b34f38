"""Speed: every model is run equally often and in turn, on the same tokens, for about as long as was asked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import prune
from prune.cli import run as command
from prune.evaluation import peak
from prune.evaluation import speed as module
from prune.evaluation.benchmark import benchmark, graphs_in
from prune.evaluation.peak import peaks
from prune.evaluation.runners import Runner, onnx, pytorch, runtime_of
from prune.evaluation.speed import Setting, distinct, entry, settings, speed
from prune.exports.job import Job
from prune.recipe import apply
from prune.report import evaluated
from tests import zoo
from tests.tiny import tiny_model


class Clock:
    """Time that passes only in forward passes, by the given seconds each, models in turn."""

    def __init__(self, **seconds: float):
        self.seconds, self.now, self.seen = seconds, 0.0, list[tuple[str, dict[str, Any]]]()

    def perf_counter(self) -> float:
        return self.now

    def listen(self, name: str, model: PreTrainedModel) -> None:
        def advance(_: Any, __: Any, inputs: dict[str, Any]) -> None:
            prompt = inputs["input_ids"].shape[1] > 1
            self.now += self.seconds[name] * (4 if prompt else 1)
            self.seen.append((name, inputs))

        model.register_forward_pre_hook(advance, with_kwargs=True)


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
def clock(pair: dict[str, PreTrainedModel], monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(before=0.5, after=0.25)
    monkeypatch.setattr(module, "time", clock)
    for name, model in pair.items():
        clock.listen(name, model)
    return clock


def run(pair: dict[str, PreTrainedModel]) -> dict[str, list[Runner]]:
    return {name: [pytorch(model)] for name, model in pair.items()}


@pytest.mark.usefixtures("clock")
def test_medians_quartiles_and_ratio(pair: dict[str, PreTrainedModel]) -> None:
    found = speed(run(pair), [Setting(2, 5, 3)], seconds=7 * (6 + 1.5 - 0.1))
    assert list(found) == ["prefill", "decode"]
    of = {"runtime": "PyTorch", "batch": 2, "length": 5, "rounds": 10, "device": "cpu", "threads": 1}
    assert found["prefill"] == {"before": 2.0, "after": 1.0, "ratio": 0.5, "spread": [0.5, 0.5], "of": of}
    assert found["decode"] == {
        "before": 2 * 3 / 1.5,
        "after": 2 * 3 / 0.75,
        "ratio": 2.0,
        "spread": [2.0, 2.0],
        "of": {**of, "new": 3},
    }


def test_ratios_are_taken_round_by_round() -> None:
    found = entry({"before": [1.0, 2.0, 4.0, 8.0], "after": [1.0, 1.0, 1.0, 8.0]}, {})
    assert found["ratio"] == 0.75
    assert found["ratio"] != found["after"] / found["before"]
    assert entry({"model": [1.0, 2.0, 3.0]}, {}) == {"model": 2.0, "spread": [1.0, 3.0], "of": {}}
    assert entry({"before": [2.0], "after": [1.0]}, {}) == {"before": 2.0, "after": 1.0, "ratio": 0.5, "of": {}}


def test_models_take_turns_on_the_same_tokens_and_decode_with_the_cache(
    pair: dict[str, PreTrainedModel], clock: Clock
) -> None:
    speed(run(pair), [Setting(1, 5, 2)], seconds=0)
    assert [name for name, _ in clock.seen] == (["before"] * 3 + ["after"] * 3) * (1 + module.LEAST)
    tokens = [inputs["input_ids"] for _, inputs in clock.seen]
    assert all(torch.equal(tokens[number % 3], other) for number, other in enumerate(tokens))
    assert [other.shape for other in tokens[:3]] == [(1, 5), (1, 1), (1, 1)]
    assert max(int(other.max()) for other in tokens) < 80


def test_tokens_follow_the_seed_and_no_one_elses(pair: dict[str, PreTrainedModel], clock: Clock) -> None:
    state = torch.get_rng_state()
    for seed in (0, 0, 1):
        speed(run(pair), [Setting(1, 8, 0)], seconds=0, seed=seed)
    first, again, other = (inputs["input_ids"] for _, inputs in clock.seen[:: 2 * (1 + module.LEAST)])
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.usefixtures("clock")
def test_rounds_are_bounded(pair: dict[str, PreTrainedModel], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 7)
    assert speed(run(pair), [Setting(1, 2, 1)], seconds=1e9)["prefill"]["of"]["rounds"] == 7


@pytest.mark.usefixtures("clock")
def test_every_batch_with_every_length_and_each_has_a_name(pair: dict[str, PreTrainedModel]) -> None:
    chosen = settings([4, 1], [8, 3], 0)
    assert chosen == [Setting(1, 3, 0), Setting(1, 8, 0), Setting(4, 3, 0), Setting(4, 8, 0)]
    found = speed(run(pair), chosen, seconds=0)
    names = ["prefill", *(f"prefill, batch {b}, length {n}" for b, n in ((1, 8), (4, 3), (4, 8)))]
    assert list(found) == names
    assert list(speed(run(pair), settings([1, 2], 3, 0), seconds=0)) == ["prefill", "prefill, batch 2"]


def test_settings_are_cut_to_the_positions_there_are() -> None:
    runners = [pytorch(tiny_model("llama", num_hidden_layers=1))]
    assert distinct([Setting(1, 500, 8), Setting(1, 700, 8)], runners) == [Setting(1, 54, 8)]
    assert distinct([Setting(1, 10, 8)], [*runners, pytorch(zoo.module("bert"))]) == [Setting(1, 10, 0)]


@pytest.mark.parametrize("name", ["bert", "gpt2", "roberta", "t5", "vit"])
def test_any_kind_of_model_within_its_positions(name: str) -> None:
    runner = pytorch(zoo.module(name))
    found = speed({"model": [runner]}, distinct([Setting(2)], [runner]), seconds=0)
    assert found["prefill"]["model"] > 0
    assert ("decode" in found) == (name == "gpt2")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Path]:
    model = tiny_model("llama", num_hidden_layers=1)
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    prune.export(prune.open(model), folder)
    return model, folder / "model.onnx"


@torch.inference_mode()
def test_an_export_is_run_with_its_cache(exported: tuple[PreTrainedModel, Path]) -> None:
    model, path = exported
    ids = torch.arange(3, 15)[None]
    runner, direct = onnx(path), pytorch(model)
    state = runner.decode(runner.prefill(ids[:, :8]), ids[:, 8:9])
    cache = direct.decode(direct.prefill(ids[:, :8]), ids[:, 8:9])
    keys, length = state
    assert length == cache.get_seq_length() == 9
    torch.testing.assert_close(torch.from_numpy(keys[0]), cache.layers[0].keys, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["vit"])
def test_a_graph_without_a_cache_is_run_whole(name: str, tmp_path: Path) -> None:
    prune.export(prune.open(zoo.module(name)), tmp_path / "out")
    asked: Any = {"length": 4, "seconds": 0.01, "memory": False}
    assert list(benchmark({}, {"model": [tmp_path / "out" / "model.onnx"]}, asked)) == ["prefill, ONNX Runtime"]


def test_an_export_is_timed_beside_its_model(exported: tuple[PreTrainedModel, Path]) -> None:
    model, path = exported
    asked: Any = {"length": 6, "new": 2, "seconds": 0.01, "memory": False}
    found = benchmark({"after": prune.open(model)}, {"after": [path]}, asked)
    assert list(found) == ["prefill", "decode", "prefill, ONNX Runtime", "decode, ONNX Runtime"]
    assert found["decode, ONNX Runtime"]["of"]["runtime"] == "ONNX Runtime"
    alone = benchmark({}, {"model": [path]}, asked)
    assert list(alone) == ["prefill, ONNX Runtime", "decode, ONNX Runtime"]
    assert graphs_in(path.parent) == graphs_in(path.parent.parent) == [path]
    assert graphs_in(path.parent / "nowhere") == []
    assert runtime_of(Path("out/onnx-int8/model.onnx")) == "ONNX Runtime int8"


def test_an_export_by_an_earlier_step_is_timed_beside_the_originals(
    llama_folder: Path, tmp_path: Path, exported: tuple[PreTrainedModel, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(job: Job, **_: Any) -> dict[str, Any]:
        job.folder.mkdir()
        shutil.copy(exported[1], job.folder)
        return {"format": "onnx"}

    monkeypatch.setattr("prune.steps.export.write_export", write)
    monkeypatch.setattr("prune.steps.evaluate.write", write)
    speed = {"speed": {"length": 8, "new": 2, "seconds": 0.01, "memory": False}}
    remove = {"remove": {"what": "channels", "ratio": 0.5, "criterion": "magnitude"}}
    first = {"export": {"format": "onnx", "dtype": "fp32"}}  # to another folder than the last
    steps: list[Any] = [first, remove, {"evaluate": speed}, "export", {"evaluate": speed}]
    done = apply({"model": str(llama_folder), "steps": steps}, output=tmp_path / "out")
    early, late = (done.timings[number]["speed"] for number in (2, 4))
    assert set(early) == {"prefill", "decode"}  # what was exported before is of another model
    assert set(late) == {"prefill", "decode", "prefill, ONNX Runtime", "decode, ONNX Runtime"}
    for own in late.values():
        assert {"before", "after", "ratio", "spread", "of"} == set(own)
    assert "speed" not in done.steps[4]["record"]
    assert done.timings[4]["latency_seconds"] == [late["prefill"]["before"], late["prefill"]["after"]]


def test_an_export_alone_is_timed_and_nothing_else(
    exported: tuple[PreTrainedModel, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "exported"
    shutil.copytree(exported[1].parent, out)
    assert command(["evaluate", str(out), "--speed", "--prompt-length", "4", "--json", "--no-memory"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["speed"]) == {"prefill, ONNX Runtime", "decode, ONNX Runtime"}
    assert command(["evaluate", str(out), "--speed", "--generate", "a"]) == 2
    assert "is an export, which only --speed measures" in capsys.readouterr().err


def test_peaks_hold_the_weights_and_grow_with_what_is_run() -> None:
    model = prune.open(tiny_model("llama", hidden_size=128, intermediate_size=4096, vocab_size=256))
    many, few = peaks(model, [Setting(48, 60, 1), Setting(1, 8, 2)])
    assert few > 0.9 * model.tensors.bytes
    assert many > few + 4 * 48 * 60 * 4096  # an MLP's channels in float32


def test_only_what_is_not_on_disk_is_written_for_its_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lies = prune.open(prune.save(prune.open(tiny_model("llama", num_hidden_layers=2)), tmp_path / "model"))
    cut = prune.cut(lies, {"layers": [0]})
    written = []
    monkeypatch.setattr(peak, "save", lambda model, folder: written.append(model) or folder)
    for model in (lies, cut, prune.open(tiny_model("llama"))):
        with peak._on_disk(model) as folder:
            assert (folder == tmp_path / "model") == (model is lies)
    assert len(written) == 2 and written[0] is cut


def test_a_setting_that_was_cut_is_told_of() -> None:
    model = prune.open(tiny_model("llama", num_hidden_layers=1))
    asked: Any = {"length": [8, 512], "new": 8, "seconds": 0.01, "memory": False}
    found = prune.evaluate(model, speed=asked)
    said = "speed: prompts of 512 tokens were asked, and the models have positions for 54 of them"
    assert found["warnings"] == [said]
    assert said in evaluated.evaluation(found)
    assert prune.evaluate(model, speed={**asked, "length": 8})["warnings"] == []


def test_a_process_that_fails_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = tmp_path / "python"
    failing.write_text("#!/bin/sh\necho some words >&2\necho out of memory >&2\nexit 3\n")
    failing.chmod(0o755)
    monkeypatch.setattr(peak.sys, "executable", str(failing))
    with pytest.raises(prune.PruneError, match="the process whose memory is measured failed: out of memory"):
        peaks(tmp_path / "model.onnx", [Setting(1, 8, 2)])
