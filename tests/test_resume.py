"""Runs end with the same bytes however often they are stopped, do nothing twice, and replace only what is theirs."""

# ruff: noqa: E501  # tables of long lines
from __future__ import annotations

import json
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from prune import files
from prune.errors import PruneError
from prune.recipe import keys, work
from tests import fakes
from tests.fakes import CALLS, run

RECIPE = """\
model: big
output: out/small
calibration: {data: corpus.txt, samples: 2}
steps:
  - remove: {count: 2}
  - remove: {count: 3}
  - evaluate
  - export
"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("big").mkdir()
    Path("big/weights.txt").write_text("abcdefghijklmnop")
    Path("corpus.txt").write_text("some text")
    Path("recipe.yaml").write_text(RECIPE)
    CALLS.clear()
    return tmp_path


def tree(folder: str | Path) -> dict[str, bytes]:
    """The bytes of every file but the timings, and the report that shows them."""
    fixed = [name for name in files.names(folder) if name != files.TIMINGS and not name.startswith("report/")]
    return {name: Path(folder, name).read_bytes() for name in fixed}


def listing(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def fresh() -> dict[str, bytes]:
    """What an undisturbed run gives."""
    run("recipe.yaml", output="undisturbed")
    CALLS.clear()
    return tree("undisturbed")


def refused(*args, **options) -> str:
    before = {name: Path(name).read_bytes() for name in files.names(".")}
    with pytest.raises(PruneError) as caught:
        run(*args, **options)
    assert {name: Path(name).read_bytes() for name in files.names(".")} == before, "something was written"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_run_writes_its_output_and_nothing_else():
    result = run("recipe.yaml")
    assert result.state == "done"
    assert listing("out") == ["small"]
    assert files.names("out/small") == [
        "README.md", "config.json", "onnx/model.onnx", "prune.json", "report/index.html", "report/metrics.json",
        "timings.json", "weights.txt",
    ]  # fmt: skip
    assert Path("out/small/weights.txt").read_text() == "fghijklmnop"
    assert Path("out/small/onnx/model.onnx").read_text() == "FGHIJKLMNOP"
    assert files.verify("out/small") == []
    assert [step["word"] for step in result.steps] == ["remove", "remove", "evaluate", "export"]
    assert result.steps[2]["record"]["perplexity"]["after"] is None  # JSON has no infinity
    assert result.warnings == ["letters are few"]
    assert all(timing["seconds"] >= 0 for timing in result.timings)


def test_the_manifest_has_what_it_takes_to_make_the_output_again():
    run("recipe.yaml", overrides=["steps.0.count=4"], output="elsewhere")
    manifest = json.loads(Path("elsewhere/prune.json").read_text())
    assert manifest["recipe"]["steps"][0] == {"remove": {"count": 4}}
    assert "output" not in manifest["recipe"]
    again = run(manifest["recipe"], output="again")
    assert again.state == "done"
    assert tree("again") == tree("elsewhere")


def test_the_licence_of_the_base_model_is_carried_over():
    Path("big/README.md").write_text("---\nlicense: mit\ntags: [a]\n---\n# big\n")
    run("recipe.yaml")
    assert "\nlicense: mit\n" in Path("out/small/README.md").read_text()


def test_nothing_to_do_does_nothing():
    run("recipe.yaml")
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")}
    CALLS.clear()
    result = run("recipe.yaml")
    assert (result.state, CALLS) == ("unchanged", [])
    assert result.steps[0]["record"]["removed"] == {"letters": "2 of 16"}
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")} == before


def test_what_a_step_left_unfinished_is_there_at_its_next_try_and_gone_once_it_is_done():
    fresh_run = {"overrides": ["steps.2.asks=3"]}
    for answered in (1, 2):
        with pytest.raises(PruneError, match=f"answered {answered} of 3"):
            run("recipe.yaml", **fresh_run)
    (held,) = [name for name in listing("out/small.work") if name.endswith(work.UNFINISHED)]
    assert held.startswith("3-evaluate-")
    result = run("recipe.yaml", **fresh_run, keep_steps=True)
    assert result.state == "done"
    assert not [name for name in listing("out/small.work") if name.endswith(work.UNFINISHED)]


def test_another_recipe_takes_what_was_unfinished_away():
    for asks in (3, 4):
        with pytest.raises(PruneError, match=f"answered 1 of {asks}"):
            run("recipe.yaml", overrides=[f"steps.2.asks={asks}"])


def test_an_input_that_only_the_step_can_read_is_part_of_its_key(monkeypatch):
    monkeypatch.setattr(fakes.evaluate, "prints", {"text": lambda name: Path(name).read_text()}, raising=False)
    Path("words").write_text("first")
    run("recipe.yaml", overrides=["steps.2.text=words"])
    Path("words").write_text("second")
    with pytest.raises(PruneError, match="another input"):
        run("recipe.yaml", overrides=["steps.2.text=words"])


def test_a_run_goes_on_after_its_last_finished_step():
    expected = fresh()
    with pytest.raises(PruneError, match="too short"):
        run("recipe.yaml", overrides=["steps.2.fail=true"])
    assert CALLS == ["remove", "remove", "evaluate"]
    CALLS.clear()
    run("recipe.yaml")
    assert CALLS == ["evaluate", "export"]
    assert tree("out/small") == expected


def test_the_timings_of_finished_steps_are_carried_over():
    with pytest.raises(PruneError):
        run("recipe.yaml", overrides=["steps.2.fail=true"])
    kept = [files.read_json(path / "timings.json") for path in sorted(Path("out/small.work").glob("*-remove-*"))]
    assert run("recipe.yaml").timings[:2] == kept


def test_a_failed_first_step_leaves_nothing():
    Path("recipe.yaml").write_text("model: big\noutput: a/b/out\nsteps: [evaluate: {fail: true}]")
    refused("recipe.yaml")
    assert not Path("a").exists()


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (lambda: None, []),
        (lambda: edit("count: 2", "count: 1"), ["remove", "remove", "evaluate", "export"]),
        (lambda: edit("count: 3", "count: 4"), ["remove", "evaluate", "export"]),
        (lambda: edit("- evaluate", "- evaluate: {text: corpus.txt}"), ["evaluate", "export"]),
        (lambda: edit("- evaluate", "- evaluate: {fail: false}"), []),  # a default spelt out changes nothing
        (lambda: edit("  - export\n", ""), []),
        (lambda: edit("samples: 2", "samples: 3"), ["remove", "remove", "evaluate", "export"]),
        (lambda: edit("model: big", "model: big\nseed: 1"), ["remove", "remove", "evaluate", "export"]),
        (lambda: edit("model: big", "model: big\ndtype: float16"), ["remove", "remove", "evaluate", "export"]),
        (lambda: Path("corpus.txt").write_text("other"), ["remove", "remove", "evaluate", "export"]),
        (lambda: Path("big/weights.txt").write_text("bacdefghijkl"), ["remove", "remove", "evaluate", "export"]),
    ],
)
def test_a_run_starts_again_where_a_change_touches_it(change, again):
    run("recipe.yaml", keep_steps=True)
    shutil.rmtree("out/small")
    CALLS.clear()
    change()
    run("recipe.yaml")
    assert again == CALLS
    got = tree("out/small")
    assert fresh() == got


def edit(old: str, new: str) -> None:
    assert old in RECIPE
    Path("recipe.yaml").write_text(RECIPE.replace(old, new))


def test_a_change_of_version_or_of_a_plan_file_changes_the_keys(monkeypatch):
    Path("plan.json").write_text("{}")
    edit("count: 3", "count: 3, plan: plan.json")
    run("recipe.yaml", keep_steps=True)
    CALLS.clear()
    Path("plan.json").write_text("{ }")
    run("recipe.yaml", keep_steps=True, overwrite=True)
    assert CALLS == ["remove", "evaluate", "export"]
    for changed, value in (("versions", {"prune": "another"}), ("own_source", "edited")):
        CALLS.clear()
        monkeypatch.setattr(keys, changed, lambda value=value: value)
        run("recipe.yaml", overwrite=True)
        assert CALLS == ["remove", "remove", "evaluate", "export"]


def test_a_damaged_step_is_not_trusted():
    expected = fresh()
    run("recipe.yaml", keep_steps=True)
    shutil.rmtree("out/small")
    (second,) = Path("out/small.work").glob("2-remove-*")
    (second / "weights.txt").unlink()  # not rewritten in place: the output may share the file
    (second / "weights.txt").write_text("fghijklmnoX")
    CALLS.clear()
    run("recipe.yaml")
    assert CALLS == ["remove"]  # the later steps have the same keys, and are whole
    assert tree("out/small") == expected
    assert not Path("out/small.work").exists()


def test_restart_ignores_finished_steps():
    run("recipe.yaml", keep_steps=True)
    CALLS.clear()
    assert "exists; --overwrite replaces it" in refused("recipe.yaml", restart=True)
    run("recipe.yaml", restart=True, overwrite=True)
    assert CALLS == ["remove", "remove", "evaluate", "export"]


def test_keep_steps_keeps_them_whole():
    result = run("recipe.yaml", keep_steps=True)
    names = sorted(path.name.rsplit("-", 1)[0] for path in result.work.iterdir() if path.is_dir())
    assert names == ["1-remove", "2-remove", "3-evaluate", "4-export"]
    assert not list(Path("out/small.work").glob("3-*/weights.txt"))  # a step that changes nothing holds no model


def test_without_a_step_that_changes_it_the_model_is_written_as_it_is():
    run({"model": "big", "steps": ["evaluate"]}, output="same")
    assert Path("same/weights.txt").read_text() == "abcdefghijklmnop"
    assert files.verify("same") == []


def test_an_export_of_a_model_that_changed_later_is_warned_of():
    result = run({"model": "big", "steps": ["export", {"remove": {"count": 1}}]}, output="odd")
    assert result.warnings == [
        "onnx/model.onnx was made before a later step changed the model, so it is of another model"
    ]


def test_a_dry_run_writes_nothing_and_knows_the_sizes():
    before = sorted(Path().rglob("*"))
    result = run("recipe.yaml", dry_run=True)
    assert (result.state, CALLS, sorted(Path().rglob("*"))) == ("checked", [], before)
    assert result.steps[1]["record"]["parameters"] == [14, 11]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("count: 3", "count: 15", "recipe.yaml:6:21 steps[1].remove.count: count must leave something of 14 letters, not 15"),
        ("model: big", "model: small", "recipe.yaml:1:8 model: no model folder 'small'"),
        ("output: out/small\n", "", "recipe.yaml: output is missing: name it in the recipe or with --output"),
        ("output: out/small", "output: corpus.txt", "corpus.txt: is a file, not a folder"),
        ("output: out/small", "output: corpus.txt/a", "cannot be written"),
        ("output: out/small", "output: big", "/big: exists and was not made by prune, so it is never replaced"),
        ("output: out/small", "output: big/small", "the output may not be the model's own folder"),
        ("model: big", "model: big\ndevice: cuda", "recipe.yaml:2:9 device: no CUDA device is here; choices: auto, cpu"),
        ("count: 3", "count: 3, plan: none.json", "recipe.yaml:6:30 steps[1].remove.plan: plan: cannot read 'none.json': No such file"),
    ],
)  # fmt: skip
def test_mistakes_are_found_before_anything_is_written(old, new, expected):
    edit(old, new)
    assert expected in refused("recipe.yaml")
    assert CALLS == []


def test_a_full_disk_is_known_before(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 1))
    assert "GB are free" in refused("recipe.yaml")


def test_an_output_of_ours_is_replaced_only_when_asked():
    run("recipe.yaml")
    before = tree("out/small")
    edit("count: 3", "count: 4")
    assert "made from another recipe; --overwrite replaces it" in refused("recipe.yaml")
    assert tree("out/small") == before
    run("recipe.yaml", overwrite=True)
    assert Path("out/small/weights.txt").read_text() == "ghijklmnop"
    assert listing("out") == ["small"]


def test_files_of_others_in_an_output_are_never_deleted():
    run("recipe.yaml")
    Path("out/small/thesis.txt").write_text("years of work")
    edit("count: 3", "count: 4")
    said = refused("recipe.yaml", overwrite=True)
    assert said.endswith("/out/small: holds files that prune did not write (thesis.txt); move them elsewhere first")
    Path("out/small/thesis.txt").rename("thesis.txt")
    assert run("recipe.yaml", overwrite=True).state == "done"


def test_another_output_is_refused_before_the_model_is_hashed(monkeypatch):
    run("recipe.yaml")
    monkeypatch.setattr(fakes.FakeModel, "fingerprint", lambda _: pytest.fail("hashed"))
    exists = "/out/small: exists and was made from another {}; --overwrite replaces it"
    assert refused("recipe.yaml", overrides=["seed=3"]).endswith(exists.format("seed"))
    assert refused("recipe.yaml", overrides=["steps.1.count=4"]).endswith(exists.format("recipe"))
    assert refused("recipe.yaml", restart=True).endswith("/out/small: exists; --overwrite replaces it")
    Path("corpus.txt").write_text("other text")
    assert refused("recipe.yaml").endswith(exists.format("input"))
    monkeypatch.setattr(keys, "versions", lambda: {"prune": "another"})
    monkeypatch.setattr("prune.recipe.output.versions", keys.versions)
    assert refused("recipe.yaml").endswith(exists.format("input, version"))


def test_a_check_says_what_stands_where_the_output_goes():
    assert run("recipe.yaml", dry_run=True).remarks == []
    run("recipe.yaml")
    (said,) = run("recipe.yaml", dry_run=True).remarks
    assert said.endswith("/out/small: exists; if it is what this recipe makes, there is nothing to do")
    (said,) = run("recipe.yaml", overrides=["seed=3"], dry_run=True).remarks
    assert said.endswith("made from another seed; --overwrite replaces it")
    (said,) = run("recipe.yaml", output="big", dry_run=True).remarks
    assert "was not made by prune" in said


def test_all_that_decides_the_bytes_is_in_the_keys():
    found = keys.versions()
    wanted = "prune python torch transformers tokenizers datasets safetensors numpy accelerate peft trl onnx"
    more = "onnxscript onnxruntime scipy cma lm_eval datasketch torch-pruning gguf"
    assert set(found) == {*wanted.split(), *more.split()}
    assert found["python"].count(".") == 2


def test_an_output_that_was_changed_is_not_taken_for_done():
    run("recipe.yaml")
    Path("out/small/weights.txt").write_text("x")
    assert "was changed since it was made (weights.txt: changed); --overwrite makes it again" in refused("recipe.yaml")
    run("recipe.yaml", overwrite=True)
    assert files.verify("out/small") == []


def test_a_foreign_work_folder_is_left_alone():
    Path("out/small.work").mkdir(parents=True)
    Path("out/small.work/thesis.txt").write_text("years of work")
    assert "holds 'thesis.txt', which is not a finished step" in refused("recipe.yaml")


def test_two_runs_do_not_write_the_same_output():
    with work.opened(Path("out/small").resolve()):
        assert "another run is writing here" in refused("recipe.yaml")
    assert run("recipe.yaml").state == "done"


def test_a_run_killed_at_any_moment_ends_with_the_same_bytes():
    edit("- evaluate", "- evaluate: {sleep: 0.02}")
    expected = fresh()
    whole = kill_after(None)
    rng = random.Random(0)
    for _ in range(10):
        shutil.rmtree("out")
        for _ in range(2):
            kill_after(rng.uniform(0, 1.1) * whole)
            if Path("out/small").exists():
                assert tree("out/small") == expected
        assert run("recipe.yaml").state in ("done", "unchanged")
        assert tree("out/small") == expected
        assert not list(Path("out").glob(".*"))


def kill_after(seconds: float | None) -> float:
    """Starts the run, kills it some time after its imports (None: lets it end), and gives the time it had."""
    with subprocess.Popen(**fakes.command("tests.fakes", "recipe.yaml")) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"imported\n"
        began = time.monotonic()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
        return time.monotonic() - began
