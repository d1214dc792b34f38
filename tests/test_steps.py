"""What the steps refuse in a dry run, before a weight is read or a file written."""

# ruff: noqa: E501  # tables of long lines
from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import prune
from prune import bundled, files
from prune.errors import PruneError
from prune.recipe import apply, check
from prune.remove.cut import cut
from tests import zoo


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("short.txt").write_text("a few words\n")
    Path("damaged.jsonl").write_text('{"text": "one"}\n{"text": \n')
    Path("text.jsonl").write_text('{"text": "some words of text"}\n')
    for name, plan in PLANS.items():
        Path(name).write_text(plan)


PLANS = {
    "empty.json": "{}",
    "twice.json": '{"layers": [0, 1], "layers": [0, 2]}',
    "mixed.json": '{"layers": [0, "1"]}',
    "nested.json": '{"layers": [[0], [1]]}',
    "truth.json": '{"layers": [true]}',
    "heads.json": '{"layers.0.heads": [0], "layers": [0, 1]}',
    "good.json": '{"layers": [0, 1, 2, 4]}',
}


def complaint(*steps: dict[str, Any], model: str = "bundled", **keys: Any) -> str:
    before = files.names(".")
    with pytest.raises(PruneError) as caught:
        apply({"model": model, "output": "out", "steps": [*steps], **keys})
    assert files.names(".") == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"perplexity": "python-docs", "stride": 256}, "stride is 256; choices: 1 to 25"),
        ({"perplexity": "python-docs", "length": 2048}, "evaluate.length: length is 2048, and the model has 1024 positions"),
        ({"perplexity": "python-docs", "split": "test"}, "unknown split 'test'"),
        ({"perplexity": "damaged.jsonl"}, "damaged.jsonl: cannot be read"),
        ({"perplexity": "text.jsonl", "field": "txt"}, "unknown field 'txt'; did you mean 'text'?"),
        ({"perplexity": "~/damaged.jsonl"}, "damaged.jsonl: cannot be read"),
        ({"perplexity": "short.txt", "split": "test"}, "has no splits"),
    ],
)  # fmt: skip
def test_what_evaluate_cannot_measure_is_known_before(options: dict[str, Any], expected: str) -> None:
    assert expected in complaint(
        {"remove": {"what": "channels", "ratio": 0.5, "criterion": "magnitude"}}, {"evaluate": options}
    )


def test_a_model_without_tokenizer_is_known_before(llama_folder: Path) -> None:
    expected = "has no tokenizer files"
    remove = {"remove": {"what": "channels", "ratio": 0.5, "criterion": "magnitude"}}
    evaluate = {"evaluate": {"perplexity": "python-docs", "length": 16}}
    assert expected in complaint(evaluate, model=str(llama_folder))
    calibration = {"data": "python-docs", "samples": 2, "length": 16}
    assert expected in complaint(remove, model=str(llama_folder), calibration=calibration)


@pytest.mark.parametrize(
    ("options", "calibration", "expected"),
    [
        ({"criterion": "magnitude"}, {"data": "short.txt"}, "recipe calibration: short.txt: gives 0 windows of 64 tokens, 2 were asked"),
        ({"criterion": "magnitude"}, {"data": "~/short.txt"}, "gives 0 windows of 64 tokens"),
        ({"criterion": "wanda"}, {"data": "~/short.txt", "samples": 3}, "gives 0 windows of 512 tokens, 3 were asked"),
        ({"criterion": "magnitude", "refit": True}, {"data": "short.txt"}, "gives 0 windows of 512 tokens"),
        ({"criterion": "wanda"}, {"data": "python-docs", "length": 2048}, "calibration.length: length is 2048, and the model has 1024"),
        ({"criterion": "magnitude", "refit": True}, None, "refit and fold look at data"),
        ({"criterion": "magnitude", "fold": True}, {"data": "python-docs"}, "fold: only whole layers are folded"),
    ],
)  # fmt: skip
def test_calibration_that_cannot_be_had_is_known_before(
    options: dict[str, Any], calibration: dict[str, Any] | None, expected: str
) -> None:
    assert expected in complaint({"remove": {"what": "channels", "ratio": 0.5, **options}}, calibration=calibration)


def test_what_is_wrong_with_the_calibration_is_placed_there_and_not_at_the_step_that_meets_it() -> None:
    recipe = "model: bundled\noutput: out\nsteps:\n  - {step}\ncalibration: {{data: short.txt}}\n"
    wrong = Path("recipe.yaml")
    for step in (
        "remove: {what: channels, ratio: 0.5}",
        "distill: {steps: 2}",
        "train: {steps: 2, held_out: text.jsonl}",
    ):
        wrong.write_text(recipe.format(step=step))
        with pytest.raises(PruneError, match="^recipe.yaml:5:1 calibration: short.txt: gives 0 windows of"):
            check(wrong)
    wrong.write_text(recipe.format(step="train: {steps: 2, data: short.txt}"))
    with pytest.raises(PruneError, match=r"^recipe.yaml:4:\d+ steps\[0\].train: short.txt: gives 0 windows"):
        check(wrong)


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        ({"redundancy": {"run": 9}}, "run must be from 1 to the 6 layers there are, not 9"),
        ({"kl": {"rounds": 6}}, "rounds must be from 1 to 5, not 6"),
    ],
)
def test_more_layers_than_there_are_is_known_before(criterion: dict[str, Any], expected: str) -> None:
    calibration = {"data": "python-docs", "samples": 2, "length": 16}
    remove = {"what": "layers", "count": 1, "criterion": criterion}
    assert expected in complaint({"remove": remove}, calibration=calibration)


@pytest.mark.parametrize("amount", [{"count": 2}, {"ratio": 0.34}])
def test_angular_distance_is_of_runs_as_long_as_what_goes(
    amount: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from prune.remove import decide

    given = []
    monkeypatch.setattr(decide, "check_criterion", lambda _, name, settings: given.append({name: settings}))
    remove = {"what": "layers", "criterion": {"redundancy": {"distance": "angular"}}, **amount}
    check({"model": "bundled", "calibration": {"data": "python-docs"}, "steps": [{"remove": remove}]})
    assert given[-1] == {"redundancy": {"distance": "angular", "run": 2}}


@pytest.mark.parametrize(
    ("plan", "options", "expected"),
    [
        ("none.json", {}, "cannot read 'none.json'"),
        ("short.txt", {}, "short.txt cannot be read as JSON"),
        ("empty.json", {}, "empty.json must hold group names with kept units"),
        ("twice.json", {}, "'layers' stands twice in the plan"),
        ("mixed.json", {}, "mixed.json: layers must be a list of whole numbers"),
        ("nested.json", {}, "nested.json: layers must be a list of whole numbers"),
        ("truth.json", {}, "truth.json: layers must be a list of whole numbers"),
        ("heads.json", {}, "heads.json: layers.0.heads is of kind 'heads', and `what` names layers"),
        ("good.json", {"ratio": 0.5}, "remove.ratio: does nothing beside a plan, which says what stays: ratio"),
        ("good.json", {"criterion": "magnitude", "protect": [1]}, "which says what stays: criterion, protect"),
    ],
)
def test_a_plan_file_is_read_strictly(plan: str, options: dict[str, Any], expected: str) -> None:
    assert expected in complaint({"remove": {"what": "layers", "plan": plan, **options}})


def test_a_plan_says_all_it_removes() -> None:
    Path("both.json").write_text(json.dumps({"layers": [0, 1, 2, 4], "layers.0.heads": [0]}))
    found = check({"model": "bundled", "steps": [{"remove": {"what": ["heads", "layers"], "plan": "both.json"}}]})
    assert set(found.steps[0]["record"]["removed"]) == {"heads", "layers"}
    assert found.steps[0]["record"]["removed"]["layers"] == "2 of 6"


def test_fewer_calibration_tokens_than_unknowns_are_warned_of() -> None:
    calibration = {"data": "python-docs", "samples": 2, "length": 16}
    remove = {"what": "channels", "ratio": 0.25, "refit": {"target": "residual", "damping": 1e-2}}
    recipe = {"model": "bundled", "output": "out", "calibration": calibration, "steps": [{"remove": remove}]}
    (warning,) = apply(recipe).warnings
    assert warning.startswith("fewer calibration tokens than unknowns in 12 linears")


@pytest.mark.parametrize("what", ["channels", "width"])
def test_obs_warns_of_fewer_calibration_tokens_than_unknowns(what: str) -> None:
    calibration = {"data": "python-docs", "samples": 2, "length": 16}
    remove = {"what": what, "ratio": 0.25, "criterion": {"obs": {"rounds": 4}}}
    (warning,) = apply(
        {"model": "bundled", "output": "out", "calibration": calibration, "steps": [{"remove": remove}]}
    ).warnings
    assert warning.startswith("fewer calibration tokens than unknowns in ")


def test_rounds_in_between_warn_as_the_last_one_does() -> None:
    config = prune.open("bundled").config
    tokens = int(0.7 * config.intermediate_size)  # fewer than the first round leaves, more than the second
    calibration = {"data": "python-docs", "samples": 4, "length": tokens // 4}
    refit = {"target": "dense", "damping": 1e-2}
    remove = {"what": "channels", "ratio": 0.5, "criterion": "magnitude", "refit": refit}
    recipe = {"model": "bundled", "calibration": calibration}
    assert apply({**recipe, "output": "once", "steps": [{"remove": remove}]}).warnings == []
    (warning,) = apply({**recipe, "output": "twice", "steps": [{"remove": {**remove, "iterations": 2}}]}).warnings
    assert warning.startswith(f"fewer calibration tokens than unknowns in {config.num_hidden_layers} linears")


def test_a_step_warns_of_all_that_it_has_to() -> None:
    calibration = {"data": "python-docs", "samples": 2, "length": 16}
    layers = {"what": "layers", "count": 1, "criterion": "redundancy"}
    channels = {"what": "channels", "ratio": 0.25, "refit": {"target": "residual", "damping": 1e-18}}
    recipe = {"model": "bundled", "output": "out", "calibration": calibration}
    found = apply({**recipe, "steps": [{"remove": layers}, {"remove": channels}]})
    assert [warning.partition(" in ")[0] for warning in found.warnings] == [
        "refit against the model as this step found it: the original has other layers",
        "fewer calibration tokens than unknowns",
        "damping had to be raised",
    ]
    raised = len(found.steps[1]["record"]["refit"]["raised"])
    assert f"damping had to be raised in {raised} linears" in found.warnings[2]
    page = Path("out/report/index.html").read_text()
    said = rf"step 2: 10 linears solved anew, target residual, damping [^;]+; it had to be raised in {raised} of them"
    assert re.search(said, page)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"what": ["layers", "channels"], "budget": {"params": 0.5}, "criterion": "magnitude"}, "layers is not shared out"),
        ({"what": "width", "budget": {"params": 0.5}, "uniform": False, "criterion": "magnitude"}, "width has one size"),
        ({"what": "channels", "budget": {"latency": 0.01}, "criterion": "magnitude"}, "the smallest is flops 0."),
        ({"what": "channels", "budget": {"params": 0.01}, "criterion": "magnitude"}, "the smallest is params 0."),
        ({"what": "channels", "budget": {}, "uniform": False, "criterion": "magnitude"}, "an empty budget asks for nothing"),
        ({"what": "channels", "budget": {"params": 0.5}, "scope": "global"}, "remove.scope: does nothing beside a budget"),
        ({"what": "channels", "budget": {"params": 0.5}, "normalize": "none"}, "remove.normalize: does nothing beside a budget"),
        ({"what": "channels", "ratio": 0.5, "uniform": False}, "remove.uniform: says how a budget is shared out"),
        ({"what": ["attention", "mlp"], "ratio": 0.5, "iterations": 2, "criterion": "magnitude"}, "steps of their own"),
    ],
)  # fmt: skip
def test_what_a_budget_cannot_share_out_is_known_before(options: dict[str, Any], expected: str) -> None:
    assert expected in complaint({"remove": options})


@pytest.mark.parametrize("mending", ["refit", "fold"])
@pytest.mark.parametrize("family", ["gemma2", "mixtral"])
def test_layers_that_cannot_be_folded_are_known_before(family: str, mending: str) -> None:
    zoo.module(family).save_pretrained("model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bundled.folder() / name, "model")
    remove = {"what": "layers", "count": 1, "criterion": "magnitude", mending: True}
    calibration = {"data": "python-docs", "samples": 2, "length": 16}
    expected = f"{mending}: layers cannot be dropped with refit or fold"
    assert expected in complaint({"remove": remove}, model="model", calibration=calibration)


def test_a_budget_honours_what_is_protected_and_says_what_room_it_leaves() -> None:
    remove = {"what": "heads", "budget": {"params": 0.93}, "criterion": "magnitude"}
    (note,) = check({"model": "bundled", "steps": [{"remove": remove}]}).steps[0]["record"]["notes"]
    assert note.startswith("params: 0.8") and "not the 0.93 that may" in note
    remove = {
        "what": "channels",
        "budget": {"params": 0.8},
        "criterion": "magnitude",
        "protect": [0],
        "multiple_of": 64,
    }
    record = apply({"model": "bundled", "output": "out", "steps": [{"remove": remove}]}).steps[0]["record"]
    kept = [len(record["plan"][f"layers.{layer}.channels"]) for layer in range(1, 6)]
    assert "layers.0.channels" not in record["plan"]
    assert not any(count % 64 for count in kept)
    assert record["parameters"][1] <= 0.8 * record["parameters"][0]


def test_a_budget_holds_for_the_biases_that_flap_adds() -> None:
    calibration = {"data": "python-docs", "samples": 2, "length": 32}
    remove = {"what": "channels", "budget": {"params": 0.6}, "criterion": "flap"}
    recipe = {"model": "bundled", "output": "out", "calibration": calibration, "steps": [{"remove": remove}]}
    before, after = apply(recipe).steps[0]["record"]["parameters"]
    assert 0.59 * before < after <= 0.6 * before


@pytest.mark.parametrize(("name", "share"), [("training-free", 0.82), ("budget", 0.7)])
def test_the_packaged_recipes_of_a_training_free_cut_run(name: str, share: float) -> None:
    shrunken = ["calibration.samples=4", "calibration.length=32", "steps.1.evaluate.samples=2"]
    result = apply(name, output="out", overrides=shrunken)
    before, after = result.steps[0]["record"]["parameters"]
    assert (share - 0.01) * before < after <= share * before
    assert result.steps[0]["record"]["refit"]["linears"] == "all"


def test_folding_adds_no_parameters() -> None:
    calibration = {"data": "python-docs", "samples": 2, "length": 32}
    remove = {"what": "layers", "count": 1, "protect": [0], "criterion": "redundancy", "fold": True}
    recipe = {"model": "bundled", "output": "out", "calibration": calibration, "steps": [{"remove": remove}]}
    (step,) = apply(recipe).steps
    plain = cut(prune.open("bundled"), step["record"]["plan"])
    assert step["record"]["parameters"][1] == plain.tensors.parameters
    assert not any(name.endswith(".bias") for name in prune.open("out").tensors.info)


def test_halves_and_width_go_through_a_recipe() -> None:
    calibration = {"data": "python-docs", "samples": 2, "length": 32}
    steps = [
        {"remove": {"what": ["attention", "mlp"], "count": 1, "criterion": "redundancy"}},
        {"remove": {"what": "width", "ratio": 0.25, "criterion": "activation"}},
    ]
    first, second = apply({"model": "bundled", "output": "out", "calibration": calibration, "steps": steps}).steps
    assert set(first["record"]["removed"]) == {"attention", "mlp"}
    assert second["record"]["removed"] == {"width": "48 of 192"}
    assert all(step["record"]["proof"]["max_relative_difference"] < 1e-4 for step in (first, second))
