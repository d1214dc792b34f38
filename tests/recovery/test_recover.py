"""Training from beginning to end, on tiny models: what it may change, what it never does, and how it goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

import prune
from prune.errors import PruneError
from prune.model.model import Model
from prune.progress import Progress
from prune.recovery import cache as caches
from prune.recovery import fit as loops
from prune.recovery import recover as recovers
from prune.recovery.cache import Cache
from prune.recovery.head import Head
from prune.recovery.hidden import Hidden
from prune.recovery.logits import CHUNK, Logits
from prune.recovery.objective import Objective, totals
from prune.recovery.settings import Optimizer, Training
from prune.recovery.teacher import Teacher, ask
from prune.recovery.weights import Lora
from prune.recovery.windows import order, share, windows
from tests.tiny import tiny_model, token_ids

FAST = Optimizer(learning_rate=3e-3, warmup=0.0)
SHORT = Training(steps=6, batch_size=4, optimizer=FAST, evaluate_every=2)


def batches(count: int, seed: int, length: int = 12) -> list[dict[str, Tensor]]:
    """Text of a kind that can be learnt: every token is one more than the last."""
    starts = token_ids(count, 1, seed=seed, vocabulary=60)
    ids = starts + torch.arange(length)
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}]


ROWS, HELD_OUT = batches(12, seed=1), batches(6, seed=2)


def opened(seed: int = 0, **changes: Any) -> Model:
    return prune.open(tiny_model("llama", seed=seed, **changes))


def weights(model: Model) -> dict[str, Tensor]:
    return {name: model.tensors.read(name) for name in model.tensors.info}


def taught(student: Model, teacher: Model, training: Training = SHORT, **options: Any) -> Any:
    return prune.distill(student, ROWS, teacher=teacher, held_out=HELD_OUT, training=training, **options)


def trained(student: Model, training: Training = SHORT, **options: Any) -> Any:
    return prune.train(student, ROWS, held_out=HELD_OUT, training=training, **options)


def test_training_lowers_the_loss_and_leaves_its_input_alone() -> None:
    student = opened()
    before = {name: value.clone() for name, value in weights(student).items()}
    found = trained(student)
    assert found.record["after"] < found.record["before"] and not found.record["kept_start"]
    assert found.record["tokens"] == 6 * 4 * 12 and found.timings["tokens_per_second"] > 0
    assert [point["step"] for point in found.record["curve"]] == list(range(7))
    assert {point["step"] for point in found.record["curve"] if point["held_out"] is not None} == {0, 2, 4, 6}
    for name, value in weights(student).items():
        assert torch.equal(value, before[name])
    measured = loss_of(found.model)
    assert measured == pytest.approx(found.record["after"], rel=1e-5)


def loss_of(model: Model) -> float:
    found: float = prune.perplexity(model, HELD_OUT)["loss"]
    return found


def test_a_student_that_is_its_teacher_is_kept_to_the_last_bit() -> None:
    student = opened()
    still = replace(SHORT, optimizer=Optimizer(weight_decay=0.0))
    found = taught(student, student, still, logits=Logits(alpha=1.0))
    assert found.record["kept_start"] and found.model is student
    assert found.record["after"] == found.record["before"] and found.record["best_step"] == 0
    assert all(point["loss"] in (None, 0.0) for point in found.record["curve"])


def test_it_never_ends_worse_than_it_began() -> None:
    student = opened()
    wild = replace(SHORT, optimizer=Optimizer(learning_rate=1.0, warmup=0.0, schedule="constant"))
    best = trained(student, replace(SHORT, steps=40, evaluate_every=10)).model
    found = trained(best, wild)
    assert found.record["kept_start"] and found.model is best
    assert max(point["held_out"] for point in found.record["curve"] if point["held_out"]) > found.record["before"]


def test_the_best_weights_are_saved_not_the_last() -> None:
    """A rate that ruins the second half of the run."""
    rates = iter([3e-3] * 4 + [1.0] * 4)
    original = loops.optimize.set_rate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loops.optimize, "set_rate", lambda of, _: original(of, next(rates)))
        found = trained(opened(), replace(SHORT, steps=8))
    held_out = {p["step"]: p["held_out"] for p in found.record["curve"] if p["held_out"] is not None}
    assert found.record["best_step"] == 4 == min(held_out, key=held_out.__getitem__)
    assert found.record["after"] == pytest.approx(held_out[4], rel=1e-5)
    assert loss_of(found.model) == pytest.approx(held_out[4], rel=1e-5)


def test_it_ends_early_when_nothing_gets_better() -> None:
    ruined = replace(SHORT, steps=20, patience=2, optimizer=Optimizer(learning_rate=1.0, warmup=0.0))
    found = trained(opened(), ruined)
    assert found.record["steps"] == 4


@pytest.mark.parametrize("chosen", ["norms", Lora(rank=2, targets=("q_proj",))], ids=["norms", "lora"])
def test_only_what_is_chosen_changes(chosen: Any) -> None:
    student = opened()
    found = trained(student, replace(SHORT, weights=chosen))
    assert not found.record["kept_start"]
    before, after = weights(student), weights(found.model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    expected = {name for name in before if ("norm" in name if chosen == "norms" else "q_proj" in name)}
    assert changed and changed == expected
    assert list(after) == list(before)


@pytest.mark.parametrize("kind", ["gpt2", "mixtral"])
def test_low_rank_additions_go_into_other_families_too(kind: str) -> None:
    from tests import zoo

    found = trained(prune.open(zoo.module(kind)), replace(SHORT, steps=2, weights=Lora(rank=2)))
    assert found.record["after"] < found.record["before"]


def test_lora_targets_that_match_nothing_are_refused() -> None:
    with pytest.raises(PruneError, match="weights: unknown LoRA target 'query'; .*q_proj"):
        trained(opened(), replace(SHORT, weights=Lora(targets=("query",))))


@pytest.mark.parametrize(
    "changes",
    [{"accumulate": 2, "batch_size": 2}, {"checkpointing": True}],
    ids=["accumulated", "checkpointed"],
)
def test_the_same_steps_in_another_way_give_the_same_losses(changes: dict[str, Any]) -> None:
    teacher = opened(seed=1)
    both = {"logits": 1.0, "hidden": 0.1}
    curves = [
        [p["loss"] for p in taught(opened(), teacher, training, loss=both).record["curve"][1:]]
        for training in (SHORT, replace(SHORT, **changes))
    ]
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


def test_checkpointed_layers_are_run_again_for_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    honest = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: runs.append(torch.is_grad_enabled()) or honest(self, x))
    counts = []
    for wanted in (False, True):
        runs.clear()
        trained(opened(), replace(SHORT, checkpointing=wanted))
        counts.append(sum(runs))
    assert counts == [6 * 3, 2 * 6 * 3]  # steps and layers


def test_logits_never_stand_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """4 windows of 255 predicted tokens by 4096 ids: two chunks, of the student and of the teacher."""
    rows: list[int] = []
    heads: list[int] = []
    logits, load = Head.logits, recovers.load
    monkeypatch.setattr(Head, "logits", lambda self, state: rows.append(len(state)) or logits(self, state))

    def watched(model: Model, **how: Any) -> Any:
        module = load(model, **how)
        module.lm_head.register_forward_hook(lambda _, inputs, __: heads.append(inputs[0][..., 0].numel()))
        return module

    monkeypatch.setattr(recovers, "load", watched)
    student, teacher = (opened(seed, vocab_size=4096, max_position_embeddings=256) for seed in (0, 1))
    text = batches(4, seed=1, length=256)
    prune.distill(student, text, teacher=teacher, held_out=text, training=replace(SHORT, steps=1))
    assert max(rows) == CHUNK["cpu"] // 4096 < 4 * 255
    assert heads == [4, 4]  # tokens, to see that the two halves are the whole


def test_a_head_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LlamaForCausalLM, "forward", lambda *_, **__: SimpleNamespace(logits=torch.ones(1, 4, 96)))
    with pytest.raises(PruneError, match="LlamaForCausalLM: makes its logits with a head of its own"):
        trained(opened())


@pytest.mark.parametrize("distance", ["mse", "cosine"])
def test_a_process_without_rows_adds_nothing(distance: Any) -> None:
    """Two windows and three processes: the parts of the loss are those of one process."""
    layer = "model.layers.1"
    student, module = (tiny_model("llama", seed=seed) for seed in (0, 1))
    teacher = Teacher(module, shared=96, paths=[layer], logits=True)
    shares = {"logits": 1.0, "hidden": 1.0}
    options: dict[str, Any] = {"pairs": [(layer, layer)], "projections": torch.nn.ModuleDict()}
    objective = Objective(student, logits=Logits(), distance=distance, shares=shares, **options)
    batch = windows(ROWS).batch([0, 1])
    parts = {
        count: [
            objective(share(batch, rank, count), ask(teacher, share(batch, rank, count)), totals([batch]))[1]
            for rank in range(count)
        ]
        for count in (1, 3)
    }
    assert parts[3][2].tolist() == [0, 0, 0]
    torch.testing.assert_close(torch.stack(parts[3]).sum(0), parts[1][0])


def test_a_model_that_is_spread_is_measured_a_layer_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As well as one that is held whole. One process stands for several: its shards are the weights themselves."""
    training = replace(SHORT, weights=Lora(rank=2), autocast=torch.bfloat16)
    whole = trained(opened(dtype=torch.bfloat16), training)
    devices: list[str] = []
    load, honest = recovers.load, recovers.engine

    @contextmanager
    def spread(*args: Any, **options: Any) -> Iterator[Any]:
        with honest(*args, **options) as own:
            yield replace(own, sharded=True)

    monkeypatch.setattr(recovers, "engine", spread)
    monkeypatch.setattr("prune.recovery.engine.shard", lambda module, _: module)
    monkeypatch.setattr(recovers, "held_out_loss", None)
    monkeypatch.setattr(recovers, "load", lambda m, **how: devices.append(how.get("device", "cpu")) or load(m, **how))
    found = trained(opened(dtype=torch.bfloat16), training)
    assert not found.record["kept_start"] and devices == ["cpu", "cpu"]
    assert found.record["after"] == pytest.approx(whole.record["after"], rel=1e-4)


def test_a_run_stopped_after_its_last_step_trains_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained(opened())

    def stopped(*_: Any) -> Any:
        raise KeyboardInterrupt

    honest = recovers._finished
    monkeypatch.setattr(recovers, "_finished", stopped)
    with pytest.raises(KeyboardInterrupt):
        trained(opened(), folder=tmp_path / "state")
    monkeypatch.setattr(recovers, "_finished", honest)
    monkeypatch.setattr(loops, "_step", None)
    assert trained(opened(), folder=tmp_path / "state").record == whole.record


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"loss": {}}, "loss: compares nothing"),
        ({"loss": "hidden", "hidden": Hidden(layers={})}, "hidden: layers compares nothing"),
    ],
)
def test_a_loss_that_compares_nothing_is_refused(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(PruneError, match=expected):
        taught(opened(), opened(seed=1), **options)


def test_hidden_states_are_learnt_by_another_architecture_of_another_width() -> None:
    student = prune.open(tiny_model("qwen2", hidden_size=32, num_hidden_layers=2))
    found = taught(student, opened(), loss={"hidden": 1.0, "logits": 1.0}, hidden=Hidden("cosine", {1: 2}))
    losses = [point["loss"] for point in found.record["curve"][1:]]
    assert losses[-1] < losses[0] and found.record["parts"]["hidden"] > 0
    assert set(found.model.tensors.info) == set(student.tensors.info)  # no projection among them


def test_hidden_states_alone_never_look_at_logits() -> None:
    found = taught(opened(seed=3), opened(), loss="hidden")
    assert set(found.record["parts"]) == {"hidden"}


def test_layers_of_a_pruned_student_stand_for_those_they_were() -> None:
    teacher = opened()
    student = prune.cut(teacher, {"layers": [0, 1]})
    seen = taught(student, teacher, replace(SHORT, steps=1), loss="hidden", kept=[0, 1]).record["curve"][1]["loss"]
    assert seen == 0.0  # the first layers of a model are the same with and without the last
    spread = taught(student, teacher, replace(SHORT, steps=1), loss="hidden").record["curve"][1]["loss"]
    assert spread > 0


def test_a_student_whose_layers_differ_is_trained_too(tmp_path: Path) -> None:
    teacher = opened()
    plan = {"layers.0.channels": list(range(8)), "layers.1.heads": [0, 1]}
    found = taught(prune.cut(teacher, plan), teacher)
    assert not found.model.uniform and not found.record["kept_start"]
    prune.save(found.model, tmp_path / "small")
    assert loss_of(prune.open(tmp_path / "small")) == pytest.approx(found.record["after"], rel=1e-5)


def test_weights_keep_their_type_and_the_loss_is_that_of_what_is_saved() -> None:
    student = opened(dtype=torch.bfloat16)
    found = trained(student)
    assert {info.dtype for info in found.model.tensors.info.values()} == {torch.bfloat16}
    assert prune.perplexity(found.model, HELD_OUT, dtype=torch.float32)["loss"] == pytest.approx(found.record["after"])


def test_bfloat16_is_close_to_float32() -> None:
    curves = [
        trained(opened(), replace(SHORT, autocast=dtype)).record["curve"][1]["loss"] for dtype in (None, torch.bfloat16)
    ]
    assert curves[0] == pytest.approx(curves[1], rel=2e-2) and curves[0] != curves[1]
    with pytest.raises(PruneError, match="float16 needs its losses scaled"):
        trained(opened(), replace(SHORT, autocast=torch.float16))


@pytest.mark.parametrize("name", ["adafactor", "sgd"])
def test_every_optimiser_trains(name: Any) -> None:
    settings = Optimizer(name=name, learning_rate=1e-2, schedule="linear")
    assert not trained(opened(), replace(SHORT, optimizer=settings)).record["kept_start"]


def test_kept_logits_teach_as_the_teacher_does_and_are_taken_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """95 of 96 ids and the rest, which is the last: all that the teacher says."""
    teacher, student = opened(seed=1), opened()
    cache = Cache(tmp_path / "kept", top=95)
    live = taught(student, teacher)
    loaded: list[Model] = []
    honest = recovers.load
    monkeypatch.setattr(recovers, "load", lambda model, **how: loaded.append(model) or honest(model, **how))
    monkeypatch.setattr("prune.recovery.cache.SHARD", 40_000)  # bytes: four windows
    kept = taught(student, teacher, cache=cache)
    assert loaded == [student]  # and never the teacher
    assert len(list((tmp_path / "kept").rglob("*.safetensors"))) == 3
    for a, b in zip(live.record["curve"][1:], kept.record["curve"][1:], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    monkeypatch.setattr("prune.recovery.cache.walked_logits", None)  # the teacher is not asked again
    assert taught(student, teacher, cache=cache).record == kept.record
    with pytest.raises(TypeError):
        taught(opened(), opened(seed=2), cache=cache)  # another teacher's are not these


def test_kept_logits_of_the_student_itself_teach_nothing(tmp_path: Path) -> None:
    student = opened()
    found = taught(student, student, cache=Cache(tmp_path / "kept", top=4), logits=Logits(alpha=1.0))
    assert found.record["curve"][1]["loss"] == pytest.approx(0, abs=1e-5)


def test_a_damaged_cache_is_taken_anew(tmp_path: Path) -> None:
    teacher = opened(seed=1)
    first = taught(opened(), teacher, cache=Cache(tmp_path / "kept", top=8))
    (shard,) = (tmp_path / "kept").rglob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-4] + b"\0\0\0\1")
    assert taught(opened(), teacher, cache=Cache(tmp_path / "kept", top=8)).record == first.record


def test_what_a_killed_run_was_writing_stands_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, cache, names = opened(seed=1), Cache(tmp_path / "kept", top=8), []
    save = caches.save_file

    def killed(tensors: Any, path: Path) -> None:
        names.append(path.name)
        save(tensors, path)
        if len(names) < 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(caches, "save_file", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            taught(opened(), teacher, cache=cache)
    first = taught(opened(), teacher, cache=cache)
    assert len(set(names)) == 3  # two runs at once never write one file
    monkeypatch.setattr(caches, "walked_logits", None)  # the teacher is not asked again
    assert taught(opened(), teacher, cache=cache).record == first.record


def test_a_cache_keeps_logits_only_and_fewer_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(PruneError, match=r"cache: top is 96; choices: 1 to 95"):
        taught(opened(), opened(seed=1), cache=Cache(tmp_path, top=96))
    with pytest.raises(PruneError, match="cache: keeps logits alone"):
        taught(opened(), opened(seed=1), cache=Cache(tmp_path), loss="hidden")


def test_a_stopped_run_goes_on_with_the_same_batches_and_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, training = opened(seed=1), replace(SHORT, steps=9)
    options: dict[str, Any] = {"loss": {"logits": 1.0, "hidden": 0.1}, "hidden": Hidden("cosine")}
    whole = taught(opened(), teacher, training, **options)
    seen: list[list[int]] = []
    honest = loops.step_batches

    def stopping(rows: Any, step: int, **how: Any) -> Any:
        if step == 5 and len(seen) < 6:
            raise KeyboardInterrupt
        found = honest(rows, step, **how)
        seen.append(found[0]["index"].tolist())
        return found

    monkeypatch.setattr(loops, "step_batches", stopping)
    with pytest.raises(KeyboardInterrupt):
        taught(opened(), teacher, training, folder=tmp_path / "state", **options)
    kept = sorted(path.name for path in (tmp_path / "state").rglob("*") if path.is_file())
    assert kept == ["best.safetensors", "moments.safetensors", "state.json", "weights.safetensors"]
    monkeypatch.setattr(loops, "step_batches", honest)
    again = taught(opened(), teacher, training, folder=tmp_path / "state", **options)
    assert again.record == whole.record
    ours, theirs = weights(again.model), weights(whole.model)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert seen == [order(12, step * 4, 4, 0) for step in range(5)]


def test_every_row_comes_once_before_any_comes_again() -> None:
    found = order(7, 0, 21, seed=3)
    assert [sorted(found[start : start + 7]) for start in (0, 7, 14)] == [list(range(7))] * 3
    assert found[:7] != found[7:14] and found[4:9] == order(7, 4, 5, seed=3)


def test_a_loss_that_is_not_a_number_stops_at_its_step_and_keeps_the_weights_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = loops._gradients
    steps = []

    def poisoned(job: Any, batch: Any, whole: Any) -> Tensor:
        steps.append(batch)
        return honest(job, batch, whole) * (float("nan") if len(steps) == 4 else 1.0)

    monkeypatch.setattr(loops, "_gradients", poisoned)
    expected = r"optimizer: the loss or its gradient is not a number at step 4 of 6; .* are kept in "
    with pytest.raises(PruneError, match=expected):
        trained(opened(), folder=tmp_path / "state")
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["step-000000003"]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [([], "windows of text at all"), ([*ROWS, *batches(2, seed=1, length=9)], "windows of 9, 12 tokens together")],
)
def test_windows_are_of_one_length_and_there_are_some(rows: Any, expected: str) -> None:
    with pytest.raises(PruneError, match=f"batches: {expected}"):
        prune.train(opened(), rows, held_out=HELD_OUT, training=SHORT)


def test_what_is_no_causal_model_is_refused() -> None:
    from tests import zoo

    with pytest.raises(PruneError, match="training is for causal language models, not BertForSequenceClassification"):
        trained(prune.open(zoo.module("bert")))


def test_distillation_beats_text_alone_at_equal_steps() -> None:
    """A teacher that has read much, a student cut from it, and little text: what the teacher says is worth more."""
    much, little, others = (walks(count, seed) for count, seed in ((256, 5), (8, 6), (32, 7)))
    long = replace(SHORT, steps=80, batch_size=16, evaluate_every=40, optimizer=Optimizer(learning_rate=1e-2))
    teacher = prune.train(opened(), much, held_out=others, training=long).model
    student = prune.cut(teacher, {f"layers.{layer}.channels": list(range(16)) for layer in range(3)})
    short = replace(SHORT, steps=20, batch_size=8, evaluate_every=5)
    alone = prune.train(student, little, held_out=others, training=short).record
    guided = prune.distill(student, little, teacher=teacher, held_out=others, training=short).record
    assert guided["after"] < alone["after"] < alone["before"]


def walks(count: int, seed: int, length: int = 12) -> list[dict[str, Tensor]]:
    """Text with chance in it: a token is one, two or three more than the last."""
    steps = token_ids(count, length, seed=seed, vocabulary=6) - 2
    ids = token_ids(count, 1, seed=seed, vocabulary=50) + steps.cumsum(1)
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}]


def test_progress_says_loss_and_pace(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prune.progress.PLAIN_SECONDS", 0.0)
    trained(opened(), progress=Progress())
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("training: 3 of 6, loss ") and "tokens/s, 0 s left" in line for line in lines), lines
