"""`merge` and `upscale` as steps and as a command: records, resuming, what is known before, real fine-tunes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import prune
from prune import bundled, cli, files
from prune.errors import PruneError
from prune.evaluation.perplexity import perplexity
from prune.recipe import apply, check
from prune.recipe.load import shelf
from tests.merging import cases


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return cases.trio(tmp_path / "models", "plain", "float32").parent


def ties(**more: Any) -> dict[str, Any]:
    models = [cases.weighted(f"models/{name}", 0.5) for name in ("one", "two")]
    return {
        "merge_method": "ties",
        "base_model": "models/base",
        "models": models,
        "parameters": {"density": 0.5},
        **more,
    }


def recipe(*steps: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return {"model": "models/base", "output": "out", "steps": [*steps], **keys}


MERGING = sorted(name for name in shelf() if name.startswith(("merge-", "chat-vector", "prune-then-merge")))


@pytest.mark.parametrize("name", MERGING)
def test_the_packaged_recipes_run(place: Path, name: str) -> None:  # noqa: ARG001
    result = apply(name, output="out")
    record = result.steps[-1]["record"]
    assert bool(record["merge"]["layers"]) == (name != "merge-passthrough")  # one input moves nowhere
    model = AutoModelForCausalLM.from_pretrained("out")
    assert torch.isfinite(model(torch.tensor([[1, 5, 9]])).logits).all()


def test_every_one_of_the_first_seven_methods_has_a_recipe() -> None:
    text = "".join(shelf()[name].read_text() for name in MERGING)
    assert all(f"merge_method: {method}" in text for method in cases.SEVEN)
    assert {"chat-vector", "prune-then-merge", "upscale"} <= set(shelf())


def test_a_step_merges_as_the_library_does_and_records_what_it_did_to_each_layer(place: Path) -> None:
    result = apply(recipe({"merge": ties()}))
    out, direct = prune.open("out").tensors, prune.merge(ties()).tensors
    assert all(torch.equal(out.read(name), direct.read(name)) for name in direct.info)
    record = result.steps[0]["record"]["merge"]
    assert record["method"] == "ties" and record["inputs"] == ["models/base", "models/one", "models/two"]
    base, one, two = (prune.open(place / "models" / name) for name in ("base", "one", "two"))
    (row,) = [row for row in record["layers"] if row["layer"] == 1]
    changes = [
        torch.cat([(own.tensors.read(name) - base.tensors.read(name)).reshape(-1) for name in base.names(1)]).double()
        for own in (one, two)
    ]
    assert row["delta_norm"] == pytest.approx(
        {"one": float(changes[0].norm()), "two": float(changes[1].norm())}, rel=1e-5
    )
    cosine = changes[0] @ changes[1] / changes[0].norm() / changes[1].norm()
    assert row["cosine"] == pytest.approx(float(cosine), abs=1e-5)
    conflicts = float((changes[0] * changes[1] < 0).double().mean())
    assert row["sign_conflicts"] == pytest.approx(conflicts, abs=1e-3)
    assert {"merge/layers.csv", "merge/layers.svg"} <= set(files.manifest("out")["files"])
    assert Path("out/merge/layers.csv").read_text().splitlines()[0].startswith("layer,delta norm one,delta norm two")


def test_a_config_file_and_its_keys_are_the_same_merge_and_not_both(place: Path) -> None:  # noqa: ARG001
    Path("c.yml").write_text(json.dumps(ties()))
    apply(recipe({"merge": {"config": "c.yml"}}))
    apply(recipe({"merge": ties()}), output="other")
    assert files.sha256("out/model.safetensors") == files.sha256("other/model.safetensors")
    with pytest.raises(PruneError, match="a config says it all"):
        check(recipe({"merge": {"config": "c.yml", "dtype": "float32"}}))


def test_other_bytes_of_an_input_make_another_run(place: Path) -> None:
    assert apply(recipe({"merge": ties()})).state == "done"
    assert apply(recipe({"merge": ties()})).state == "unchanged"
    shutil.copyfile(place / "models/two/model.safetensors", place / "models/one/model.safetensors")
    with pytest.raises(PruneError, match="made from another input"):
        apply(recipe({"merge": ties()}))


def test_the_current_model_can_be_merged_with_what_it_was(place: Path) -> None:  # noqa: ARG001
    half = {"merge_method": "linear", "models": [cases.weighted("original", 0.5), cases.weighted("current", 0.5)]}
    apply(recipe({"merge": {"merge_method": "passthrough", "models": [{"model": "models/one"}]}}, {"merge": half}))
    name = "model.layers.0.mlp.up_proj.weight"
    base, one, out = (prune.open(path).tensors.read(name) for path in ("models/base", "models/one", "out"))
    torch.testing.assert_close(out, (base + one) / 2)


def test_models_are_cut_alike_before_they_are_merged(place: Path) -> None:  # noqa: ARG001
    cut = {"remove": {"what": ["channels", "heads"], "ratio": 0.5, "criterion": "magnitude"}}
    step = ties(base_model="current", cut_alike=True)
    result = apply(recipe(cut, {"merge": step}))
    plan = result.steps[0]["record"]["plan"]
    small = {name: prune.cut(prune.open(f"models/{name}"), plan) for name in ("base", "one", "two")}
    keys = ties(base_model="base", models=[cases.weighted(name, 0.5) for name in ("one", "two")])
    wanted, out = prune.merge(keys, models=small).tensors, prune.open("out").tensors
    assert out.info == wanted.info
    assert all(torch.equal(out.read(name), wanted.read(name)) for name in out.info)
    with pytest.raises(PruneError, match=r"of shape \[48, 40\], and \[48, 20\]|of shape"):
        check(recipe(cut, {"merge": ties(base_model="current")}))


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ({"merge": {"merge_method": "tise"}}, "unknown merge_method 'tise'; did you mean 'ties'?"),
        ({"merge": ties(parameters={"densty": 1})}, "unknown parameter of ties 'densty'; did you mean 'density'?"),
        ({"merge": ties(models=[{"model": "models/nobody/else"}])}, "no model folder"),
        ({"merge": {"config": "nothing.yml"}}, "cannot be read"),
        ({"merge": ties(search={"budget": 4})}, "name the data to measure candidates on"),
        ({"merge": ties(search={"metric": "beauty"})}, "steps[0].merge.search"),
        ({"merge": ties(search={"metric": "task"})}, "name the task of lm-eval"),
        ({"upscale": {}}, "give one of drop, layers and expand"),
        ({"upscale": {"drop": 3}}, "0 to 2 may go"),
        ({"upscale": {"layers": ["0-2", "x"]}}, "a run of layers is spelt 0-23, not 'x'"),
        ({"upscale": {"expand": "4"}}, "expand is spelt `every 4`"),
    ],
)
def test_slips_are_known_before_anything_is_written(place: Path, step: dict[str, Any], expected: str) -> None:
    before = files.names(place)
    with pytest.raises(PruneError) as caught:
        apply(recipe(step))
    assert expected in str(caught.value) and "\n" not in str(caught.value)
    assert files.names(place) == before


def test_a_check_knows_the_grown_model(place: Path) -> None:  # noqa: ARG001
    steps = check(recipe({"upscale": {"layers": ["0-1", "1-2"]}})).steps
    assert steps[0]["record"]["layers"] == [3, 4]
    apply(recipe({"upscale": {"layers": ["0-1", "1-2"]}}))
    out, base = prune.open("out"), prune.open("models/base")
    assert torch.equal(
        out.tensors.read("model.layers.2.mlp.up_proj.weight"), base.tensors.read("model.layers.1.mlp.up_proj.weight")
    )


def test_search_measures_no_worse_than_its_start_and_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("def f(x):\n    return x\n" * 200)
    moved = prune.load("bundled")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    shutil.copytree(bundled.folder(), "worse", ignore=shutil.ignore_patterns("*.safetensors", "prune.json"))
    prune.save(prune.open(moved), "moved")
    shutil.copyfile("moved/model.safetensors", "worse/model.safetensors")
    shutil.copyfile("moved/config.json", "worse/config.json")
    step = {
        "merge_method": "task_arithmetic",
        "base_model": "bundled",
        "models": [{"model": "worse"}],
        "search": {"weights": 1, "data": "text.txt", "samples": 2, "length": 32, "budget": 5},
        "parameters": {"weight": 1},
    }
    asked = {"model": "bundled", "steps": [{"merge": step}]}
    whole = apply(asked, output="whole").steps[0]["record"]["search"]
    assert len(whole["candidates"]) == 5 and whole["best"]["value"] <= whole["start"]
    counted = []

    def stopped(*arguments: Any) -> float:
        if len(counted) == 3:
            raise KeyboardInterrupt
        counted.append(arguments)
        return measured(*arguments)

    from prune.steps import _search

    measured = _search._measured
    monkeypatch.setattr(_search, "_measured", stopped)
    with pytest.raises(KeyboardInterrupt):
        apply(asked, output="again")
    counted.clear()
    monkeypatch.setattr(_search, "_measured", lambda *arguments: counted.append(arguments) or measured(*arguments))
    again = apply(asked, output="again").steps[0]["record"]["search"]
    assert again == whole and len(counted) == 2
    assert files.sha256("again/model.safetensors") == files.sha256("whole/model.safetensors")


def test_the_order_of_layers_is_searched_among_models_that_were_cut_alike(
    place: Path,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Measured by what wants many layers, and cannot measure where the first does not stand first."""
    from prune.steps import _search

    def measured(_: Any, model: prune.Model, wanted: Any) -> float:  # noqa: ARG001
        first = model.tensors.read("model.layers.0.mlp.up_proj.weight")
        if not torch.equal(first, lowest[0]):
            raise PruneError("the first layer is another")
        return 10.0 - model.numbers["layers"]

    def lowest_of(step: dict[str, Any]) -> torch.Tensor:
        apply(recipe(cut, {"merge": step}), output="plain")
        return prune.open("plain").tensors.read("model.layers.0.mlp.up_proj.weight")

    cut = {"remove": {"what": "channels", "ratio": 0.5, "criterion": "magnitude"}}
    step = ties(base_model="current", cut_alike=True)
    lowest = [lowest_of(step)]
    monkeypatch.setattr(_search, "_measured", measured)
    looked = {"weights": 0, "layers": 2, "metric": "task", "task": "arc_easy", "budget": 12}
    monkeypatch.setattr(_search.harness, "check", lambda _: None)
    asked = recipe(cut, {"merge": {**step, "search": looked}})
    assert check(asked).steps[1]["record"]["merge"]["method"] == "ties"
    result = apply(asked)
    found = result.steps[1]["record"]["search"]
    path = found["best"]["layers"]
    assert found["candidates"][0]["layers"] == [0, 1, 2] and len(path) > 3
    reasons = {own.get("reason") for own in found["candidates"] if own["value"] is None}
    assert reasons == {"the first layer is another"} and "the first layer is another" in page("out")
    out, plain = prune.open("out"), prune.open("plain")
    assert out.numbers["layers"] == len(path) == out.config.num_hidden_layers
    assert all(
        torch.equal(out.tensors.read(f"model.layers.{new}.{leaf}"), plain.tensors.read(f"model.layers.{old}.{leaf}"))
        for new, old in enumerate(path)
        for leaf in ("mlp.up_proj.weight", "self_attn.q_proj.weight", "input_layernorm.weight")
    )
    once = {row["layer"]: row["delta_norm"] for row in files.manifest("plain")["steps"][1]["record"]["merge"]["layers"]}
    assert all(row["delta_norm"] == once[row["layer"]] for row in result.steps[1]["record"]["merge"]["layers"])


def page(folder: str) -> str:
    return Path(folder, "report/index.html").read_text()


def test_a_search_fills_in_the_weights_and_its_layers_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("def f(x):\n    return x\n" * 200)
    looked = {"weights": 1, "layers": 2, "data": "text.txt", "samples": 1, "length": 16, "budget": 3}
    step = {"merge_method": "linear", "models": [{"model": "bundled"}], "search": looked}
    found = apply({"model": "bundled", "output": "out", "steps": [{"merge": step}]}).steps[0]["record"]["search"]
    assert found["candidates"][0]["weights"] == [[1.0]] and found["best"]["value"] <= found["start"]
    model = AutoModelForCausalLM.from_pretrained("out")
    assert model.config.num_hidden_layers == len(found["best"]["layers"])
    assert torch.isfinite(model(torch.tensor([[1, 5, 9]])).logits).all()


def test_the_seed_of_a_config_is_the_seed_of_its_masks(place: Path) -> None:
    keys = ties(merge_method="dare_ties", random_seed=9)
    Path("c.yml").write_text(json.dumps(keys))
    for output, step in (("filed", {"config": "c.yml"}), ("inline", keys)):
        masks = apply(recipe({"merge": step}, seed=4), output=output).steps[0]["record"]["merge"]["masks"]
        assert masks["seed"] == 9
    assert cli.run(["merge", "c.yml", str(place / "commanded"), "--no-report"]) == 0
    own = {files.sha256(f"{name}/model.safetensors") for name in ("filed", "inline", "commanded")}
    assert len(own) == 1
    other = {key: value for key, value in keys.items() if key != "random_seed"}
    record = apply(recipe({"merge": other}, seed=4), output="other").steps[0]["record"]["merge"]
    assert record["masks"]["seed"] == 4


def test_a_task_of_lm_eval_is_searched_by_its_wrong_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    from prune.steps import _search

    asked: list[Any] = []

    def answered(*arguments: Any, **options: Any) -> dict[str, Any]:
        asked.append((arguments[2], options["limit"]))
        return {"arc_easy": {"acc": 0.25, "acc_norm": 0.4}}

    monkeypatch.setattr(_search.harness, "run", answered)
    run = type("R", (), {"device": "cpu", "dtype": "auto", "seed": 0})
    value = _search._measured(run, prune.open("bundled"), {"metric": "task", "task": "arc_easy", "samples": 7})
    assert value == pytest.approx(0.6) and asked == [(["arc_easy"], 7)]


def test_the_command_merges_checks_and_reports(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("c.yml").write_text(json.dumps(ties()))
    before = files.names(place)
    assert cli.run(["merge", "c.yml", "out", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["merge"]["method"] == "ties"
    assert files.names(place) == before
    assert cli.run(["merge", "c.yml", "out", "--dry-run"]) == 0
    assert "files:" not in capsys.readouterr().out
    assert cli.run(["merge", "c.yml", "out"]) == 0
    assert "signs differ" in capsys.readouterr().out
    assert cli.run(["verify", "out"]) == 0
    page = Path("out/report/index.html").read_text()
    assert (
        "sign conflicts" in page
        and "How alike the deltas are" in page
        and "By ties" in Path("out/README.md").read_text()
    )
    assert cli.run(["report", "out"]) == 0
    assert Path("out/report/index.html").read_text() == page
    assert cli.run(["merge", "c.yml", "out"]) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    svg = Path("out/merge/layers.svg").read_bytes()
    assert cli.run(["merge", "c.yml", "out", "--overwrite"]) == 0
    assert Path("out/merge/layers.svg").read_bytes() == svg
    assert cli.run(["merge", "c.yml", "bare", "--no-report"]) == 0
    assert not Path("bare/report").exists() and cli.run(["verify", "bare"]) == 0
    assert files.sha256("bare/model.safetensors") == files.sha256("out/model.safetensors")


def test_what_the_command_recorded_is_a_recipe_that_makes_the_same_bytes(place: Path) -> None:  # noqa: ARG001
    Path("c.yml").write_text(json.dumps(ties(merge_method="dare_ties", random_seed=3)))
    assert cli.run(["merge", "c.yml", "out", "--no-report"]) == 0
    apply({**files.manifest("out")["recipe"], "output": "again"})
    assert files.sha256("again/model.safetensors") == files.sha256("out/model.safetensors")


def test_models_named_from_beside_the_config_are_recorded_as_they_are_found(place: Path) -> None:
    cases.adapter(place / "models/lora")
    keys = ties(
        base_model={"model": {"path": "base"}}, models=[cases.weighted(name, 0.5) for name in ("one", "two+lora")]
    )
    Path("models/c.yml").write_text(json.dumps(keys | {"tokenizer_source": None}))
    assert cli.run(["merge", "models/c.yml", "out"]) == 0
    manifest = files.manifest("out")
    (step,) = manifest["recipe"]["steps"]
    named = [own["model"] for own in step["merge"]["models"]]
    assert named == ["models/one", "models/two+models/lora"]
    assert manifest["steps"][0]["record"]["merge"]["inputs"] == ["models/base", *named]
    assert "weight 0.5" in page("out")
    apply({**manifest["recipe"], "output": "again"})
    assert files.sha256("again/model.safetensors") == files.sha256("out/model.safetensors")


def test_the_command_grows_a_model(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files.names(place)
    assert cli.run(["upscale", "models/base", "grown", "--layers", "0-1,1-2", "--dry-run"]) == 0
    assert files.names(place) == before
    assert cli.run(["upscale", "models/base", "grown", "--layers", "0-1,1-2"]) == 0
    assert AutoModelForCausalLM.from_pretrained("grown").config.num_hidden_layers == 4
    assert cli.run(["upscale", "models/base", "other", "--drop", "1", "--expand", "2"]) == 2
    assert "give one of drop, layers and expand" in capsys.readouterr().err
    assert not Path("other").exists()


@pytest.mark.parametrize("name", MERGING)
def test_a_recipe_whose_models_are_still_to_be_named_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PruneError, match="'models/base'; it stands for a model of yours"):
        check(name)


def test_memory_and_disk_that_will_not_do_are_told_before(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prune.recipe import merging

    Path("c.yml").write_text(json.dumps(ties()))
    monkeypatch.setattr(merging, "needs", lambda _: {"memory": 1.0, "disk": 1e18, "seconds": 0.0})
    with pytest.raises(PruneError, match="GB of disk"):
        merging.merge("c.yml", place / "out")
    monkeypatch.undo()
    monkeypatch.setattr("prune.merging.merge.available", lambda _: 1000)
    with pytest.raises(PruneError, match="GB of memory"):
        merging.merge(place / "c.yml", place / "out")
    monkeypatch.chdir(place)
    with pytest.raises(PruneError, match="GB of memory"):
        apply(recipe({"merge": ties()}))


def test_real_fine_tunes_merge_below_the_base_on_both_of_their_domains(fixtures_folder: Path) -> None:
    models = fixtures_folder / "models"
    base = str(models / "stories260K-llama")
    tunes = [str(models / f"stories260K-ft-{name}") for name in ("shakespeare", "c4")]
    merged = prune.merge(
        {
            "merge_method": "task_arithmetic",
            "base_model": base,
            "models": [cases.weighted(tune, 0.5) for tune in tunes],
        }
    )
    original = prune.open(base)
    for name in ("shakespeare.txt", "c4-sample.jsonl"):
        text = fixtures_folder / "text" / name
        windows = prune.windows(str(text), original.tokenizer(), length=128, samples=24)
        before, after = (perplexity(model, windows)["perplexity"] for model in (original, merged))
        assert after < 0.7 * before, (name, before, after)
