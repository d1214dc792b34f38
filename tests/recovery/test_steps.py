"""The steps `distill` and `train` in recipes: what they leave, what they refuse, and that they go on after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from prune import files
from prune.errors import PruneError
from prune.model.open import open as open_model
from prune.recipe import apply, check
from prune.recovery import fit as loops
from prune.recovery.align import _arguments
from prune.recovery.optimize import optimizer
from prune.recovery.settings import Optimizer, Training
from prune.recovery.watch import Watch
from prune.report.page import report
from prune.steps._training import chosen_weights

REMOVE = {"remove": {"what": "channels", "ratio": 0.5, "criterion": "magnitude"}}
TEXT = {"data": "words.jsonl", "samples": 4, "length": 32}
SHORT: dict[str, Any] = {"steps": 3, "batch_size": 2, "length": 32, "evaluate_every": 1}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("prune.recipe.output.report", lambda *_: {})  # drawing takes longer than training here
    said = [f"def function_{n}(x):\n    return x + {n}  # {'and again ' * (n % 7)}\n" * 20 for n in range(12)]
    Path("words.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in said))
    talk = [{"instruction": f"Write function {n}.", "output": f"def f(): return {n}"} for n in range(40)]
    Path("talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in talk))
    pairs = [{"prompt": f"Number {n}?", "chosen": f"It is {n}.", "rejected": "No."} for n in range(12)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    Path("short.txt").write_text("a few words\n")
    Path("one.txt").write_text("a few words " * 12)


def run(*steps: dict[str, Any], output: str = "out", **keys: Any) -> Any:
    return apply({"model": "bundled", "output": output, "calibration": TEXT, "steps": [*steps]}, **keys)


def made(folder: str) -> dict[str, str]:
    """The hashes of an output; its report's page has the folder's name and times in it."""
    return {name: digest for name, digest in files.hashes(folder).items() if not name.startswith("report/")}


def complaint(options: dict[str, Any], *, word: str = "distill", **keys: Any) -> str:
    recipe = {"model": "bundled", "output": "out", "calibration": TEXT, "steps": [REMOVE, {word: options}], **keys}
    with pytest.raises(PruneError) as caught:
        apply(recipe)
    assert not Path("out.work").exists() and not Path("out").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_pruned_model_is_distilled_and_stock_transformers_loads_it() -> None:
    result = run(REMOVE, {"distill": {**SHORT, "loss": {"logits": 1, "hidden": 0.1}, "cache": None}})
    record = result.steps[1]["record"]
    training = record["training"]
    assert training["after"] < training["before"] and not training["kept_start"]
    assert record["layer_map"] == {str(layer): layer for layer in range(6)}
    assert {"curve", "before", "after", "best_step", "tokens", "kept_start", "parts"} <= set(training)
    assert {"hard", "soft", "hidden"} == set(training["parts"])
    assert result.timings[1]["tokens_per_second"] > 0
    assert AutoModelForCausalLM.from_pretrained("out").config.intermediate_size == 256
    assert files.verify("out") == [] and not Path("out.work").exists()


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the libraries' own generators stand at: nothing of a training is drawn from them."""
    steps = (REMOVE, {"distill": {**SHORT, "weights": "lora", "cache": {"folder": "kept", "top": 16}}})
    torch.manual_seed(1)
    run(*steps, output="whole")
    honest, took = loops._step, []

    def dying(job: Any, facts: Any, best: Any) -> Any:
        if len(took) == 2:
            raise KeyboardInterrupt
        took.append(facts.step)
        return honest(job, facts, best)

    monkeypatch.setattr(loops, "_step", dying)
    with pytest.raises(KeyboardInterrupt):
        run(*steps)
    (state,) = Path("out.work").glob("2-distill-*.unfinished/step-*")
    assert state.name == "step-000000002" and not list(Path("out.work").rglob("*.pt"))
    monkeypatch.setattr(loops, "_step", honest)
    torch.manual_seed(2)
    run(*steps)
    assert made("out") == made("whole")


def test_layers_are_compared_by_the_plan_of_an_earlier_step() -> None:
    Path("plan.json").write_text('{"layers": [0, 1, 2, 5]}')
    cut = {"remove": {"what": "layers", "plan": "plan.json"}}
    result = run(cut, {"distill": {**SHORT, "steps": 1, "loss": "hidden"}})
    assert result.steps[1]["record"]["layer_map"] == {"0": 0, "1": 1, "2": 2, "3": 5}


def test_text_alone_trains_too() -> None:
    learnt(run(REMOVE, {"train": {**SHORT, "weights": "norms"}}).steps[1]["record"]["training"])


def learnt(training: dict[str, Any], output: str = "out") -> None:
    assert training["after"] < training["before"] and not training["kept_start"] and training["tokens"] > 0
    assert training["steps"] == training["curve"][-1]["step"]
    measured = [point["held_out"] for point in training["curve"] if point["held_out"] is not None]
    assert len(measured) >= 3 and min(measured) == pytest.approx(training["after"], rel=0.02)
    AutoModelForCausalLM.from_pretrained(output)


@pytest.mark.parametrize(
    ("objective", "data", "weights"),
    [("sft", "talk.jsonl", "all"), ("dpo", "pairs.jsonl", {"lora": {"rank": 4}})],
    ids=["sft", "dpo with lora"],
)
def test_a_killed_run_of_trl_goes_on_and_ends_with_the_same_bytes(
    objective: str, data: str, weights: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five steps of two rows, five rows: the kill comes in the second epoch, after one look and before the next."""
    options = {**SHORT, "steps": 5, "samples": 5, "length": 64, "evaluate_every": 2, "objective": objective}
    step = {"train": {**options, "data": data, "weights": weights, "optimizer": {"learning_rate": 1e-3}}}
    torch.manual_seed(1)
    learnt(run(step, output="whole").steps[0]["record"]["training"], "whole")
    honest, took = Watch.on_step_end, []

    def dying(watch: Watch, args: Any, state: Any, control: Any, **given: Any) -> None:
        took.append(state.global_step)
        if took == [1, 2, 3]:
            raise KeyboardInterrupt
        honest(watch, args, state, control, **given)

    monkeypatch.setattr(Watch, "on_step_end", dying)
    with pytest.raises(KeyboardInterrupt):
        run(step)
    kept = {path.name for path in Path("out.work").rglob("step-000000002/*")}
    assert kept == {"best.safetensors", "moments.safetensors", "state.json", "weights.safetensors"}
    torch.manual_seed(2)
    run(step)
    assert took == [1, 2, 3, 3, 4, 5]
    assert made("out") == made("whole")


def test_instructions_are_distilled_on_answers_alone() -> None:
    plain = run(REMOVE, {"distill": {**SHORT, "steps": 1, "data": "talk.jsonl", "chat": True}})
    training = plain.steps[1]["record"]["training"]
    assert training["tokens"] == 64 and training["before"] > 0


def test_a_check_reads_no_weights_and_says_what_it_needs() -> None:
    recipe = {"model": "bundled", "calibration": TEXT, "steps": [REMOVE, {"distill": SHORT}, {"train": SHORT}]}
    needs = [step["record"]["needs"] for step in check(recipe).steps[1:]]
    assert all(need["memory"] > 4 * 3_000_000 and need["seconds"] > 0 and need["disk"] > 0 for need in needs)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"teacher": "./nowhere"}, "distill.teacher: no model folder './nowhere'"),
        ({"loss": "features"}, "unknown loss 'features'"),
        ({"loss": {"logits": 0}}, "loss.logits must be above 0, not 0"),
        ({"loss": {}}, "or a mapping of length at least 1"),
        ({"loss": "hidden", "hidden": {"layers": {}}}, "hidden.layers must be a mapping of length at least 1"),
        ({"weights": {}}, "or a mapping of length at least 1"),
        ({"held_out": "./words.jsonl"}, "distill.held_out: ./words.jsonl is what is trained on"),
        ({"logits": {"temperature": 0}}, "logits.temperature must be above 0, not 0"),
        ({"logits": {"divergence": "kl"}}, "unknown logits.divergence 'kl'; choices: forward, jsd, reverse, tvd"),
        ({"loss": "hidden", "hidden": {"layers": {9: 0}}}, "maps layer 9 to 0; choices: 0 to 5 of the student"),
        ({"weights": {"lora": {"targets": ["query"]}}}, "unknown LoRA target 'query'; choices: down_proj"),
        ({"cache": {"folder": "kept", "top": 4096}}, "top is 4096; choices: 1 to 4095"),
        ({"cache": "kept", "loss": "hidden"}, "keeps logits alone"),
        ({"data": "short.txt"}, "short.txt: gives 0 windows of 32 tokens"),
        ({"data": "one.txt"}, "gives 1 window of 32 tokens; one is trained on and another held out"),
        ({"held_out": "none.txt"}, "none.txt: no such file"),
        ({"data": "talk.jsonl", "chat": False}, "unknown field 'text'"),
        ({"data": "words.jsonl", "chat": True}, "has rows with text"),
        ({"data": "python-docs", "chat": True}, "python-docs holds no instructions"),
        ({"length": 2048}, "length is 2048, and the model has 1024 positions"),
        ({"optimizer": {"name": "lion"}}, "unknown optimizer.name 'lion'; choices: adafactor, adamw, sgd"),
    ],
)
def test_what_cannot_be_distilled_is_known_before(options: dict[str, Any], expected: str) -> None:
    assert expected in complaint({**SHORT, **options})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"objective": "ppo"}, "unknown objective 'ppo'"),
        ({"objective": "dpo"}, "dpo learns from preferences; give the step `data`"),
        ({"objective": "dpo", "data": "talk.jsonl"}, "has rows without prompt"),
        ({"objective": "sft", "data": "words.jsonl"}, "has rows with text"),
        ({"objective": "dpo", "data": "pairs.jsonl", "held_out": "pairs.jsonl"}, "train.held_out: pairs.jsonl is what"),
        ({"objective": "sft", "data": "talk.jsonl", "sharded": True}, "train.sharded: sharding is for clm and distill"),
    ],
)
def test_what_cannot_be_trained_is_known_before(options: dict[str, Any], expected: str) -> None:
    assert expected in complaint({**SHORT, **options}, word="train")


def test_text_is_needed_from_somewhere() -> None:
    assert "give the step `data`, or the recipe a calibration" in complaint(SHORT, calibration=None)


def test_trl_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prune.errors.find_spec", lambda _: None)
    options = {**SHORT, "objective": "sft", "data": "talk.jsonl"}
    assert "needs trl, which is not installed" in complaint(options, word="train")


def test_teacher_and_student_with_different_vocabularies(fixtures_folder: Path) -> None:
    found = complaint({**SHORT, "teacher": str(fixtures_folder / "models" / "stories260K-llama")})
    assert "distill.teacher: teacher and student have different vocabularies" in found


def test_the_rehearsal_knows_how_many_processes_there_will_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight GPUs hold what one does not, whether the run or a launcher starts the processes."""
    monkeypatch.setattr("prune.recipe.loop.pick_device", lambda _: "cuda")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    monkeypatch.setattr("prune.forecast.flops_per_second", lambda _: 1e12)
    monkeypatch.setattr("prune.recovery.teacher.available", lambda _: 20_000_000)
    spread = {"model": "bundled", "calibration": TEXT, "steps": [REMOVE, {"distill": {**SHORT, "sharded": True}}]}
    check(spread, processes=8)
    for recipe, count in ((spread, 1), (spread | {"steps": [REMOVE, {"distill": SHORT}]}, 8)):
        with pytest.raises(PruneError, match="distill: too large: the teacher takes"):
            check(recipe, processes=count)
    monkeypatch.setenv("WORLD_SIZE", "8")
    check(spread)


def test_a_batch_that_does_not_divide_is_known_before_anything_is_removed() -> None:
    step = {"train": {**SHORT, "objective": "sft", "data": "talk.jsonl", "batch_size": 3}}
    recipe = {"model": "bundled", "output": "out", "calibration": TEXT, "steps": [REMOVE, step]}
    check(recipe)
    for call in (check, apply):
        with pytest.raises(PruneError, match="train.batch_size: 3 does not divide by 2 processes"):
            call(recipe, processes=2)
    assert not Path("out.work").exists() and not Path("out").exists()


def test_a_start_that_was_kept_is_said_in_the_run_and_on_the_page() -> None:
    wild = {"learning_rate": 1.0, "warmup": 0, "schedule": "constant"}
    result = run({"train": {**SHORT, "steps": 1, "optimizer": wild}})
    assert result.steps[0]["record"]["training"]["kept_start"]
    assert result.warnings == ["training did not lower the loss on held-out text: the model is as it was"]
    page = report(files.read_json("out/prune.json"), result.timings)["index.html"]
    assert "step 1: training did not help, and the model it began with was kept" in page


def test_held_out_text_is_read_from_the_same_column() -> None:
    for name in ("one", "two"):
        lines = [{"text": "", "body": f"{name} says {n} and more of it, " * 30} for n in range(4)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = {**SHORT, "steps": 1, "data": "one.jsonl", "held_out": "two.jsonl", "field": "body"}
    assert run({"train": options}).steps[0]["record"]["training"]["before"] > 0


@pytest.mark.parametrize("weights", ["all", "lora"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_trls_trainers_are_given_what_the_options_say(weights: Any, checkpointing: bool, tmp_path: Path) -> None:
    from transformers import Trainer, get_scheduler
    from trl import SFTConfig

    settings = Optimizer(name="sgd", schedule="constant", warmup=0.5)
    training = Training(steps=10, optimizer=settings, weights=chosen_weights(weights), checkpointing=checkpointing)
    args = SFTConfig(**_arguments(open_model("bundled"), training, str(tmp_path)))
    assert args.gradient_checkpointing is checkpointing
    kind, options = Trainer.get_optimizer_cls_and_kwargs(args)
    ours = optimizer([("one", torch.nn.Parameter(torch.zeros(2)))], settings, 0.1)
    assert kind is type(ours) and options["momentum"] == ours.defaults["momentum"]
    ours.param_groups[0]["lr"] = 1.0
    schedule = get_scheduler(args.lr_scheduler_type, ours, args.get_warmup_steps(10), 10)
    rates = []
    for _ in range(10):
        rates.append(schedule.get_last_lr()[0])
        ours.step()
        schedule.step()
    assert rates[0] < rates[2] < rates[4] < rates[5] == rates[9]


def test_trl_under_a_launchers_fsdp_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    options = {**SHORT, "objective": "sft", "data": "talk.jsonl"}
    assert "sharding is for clm and distill; sft and dpo hold the model whole" in complaint(options, word="train")


@pytest.mark.parametrize(
    ("word", "options"),
    [("distill", {}), ("train", {"objective": "sft", "data": "talk.jsonl"})],
    ids=["distill", "sft"],
)
def test_a_loss_that_is_not_a_number_leaves_the_weights_before_it(word: str, options: dict[str, Any]) -> None:
    recipe = {"model": "bundled", "output": "out", "calibration": TEXT}
    wild = {"learning_rate": 1e30, "warmup": 0, "schedule": "constant"}
    with pytest.raises(
        PruneError, match=rf"{word}\.optimizer: .* is not a number .* step 2 of 3; .* kept in"
    ) as caught:
        apply({**recipe, "steps": [{word: {**SHORT, "length": 64, **options, "optimizer": wild}}]})
    folder = Path(str(caught.value).rpartition("kept in ")[2])
    assert folder.name == "step-000000001" and (folder / "weights.safetensors").is_file() and not Path("out").exists()


@pytest.mark.parametrize(
    ("word", "options"),
    [("distill", {}), ("train", {"objective": "sft", "data": "talk.jsonl"})],
    ids=["distill", "sft"],
)
def test_float16_is_refused(word: str, options: dict[str, Any]) -> None:
    assert "float16 needs its losses scaled" in complaint({**SHORT, **options}, word=word, dtype="float16")
