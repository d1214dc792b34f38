"""The recipe word and the command: one shape of options, checked before anything is asked, resumed after a stop."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import prune
from prune import files
from prune.cli import cli
from prune.errors import PruneError
from prune.recipe import apply, check
from prune.recipe.bind import options
from prune.recipe.synthesis import synthesize
from prune.steps.synthesize import synthesize as step
from prune.synthesis.settings import Settings
from prune.synthesis.writers import make
from prune.synthesis.writers.function import function

SMALL = {"rounds": 1, "instruction_tokens": 8, "answer_tokens": 8}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seeds = [
        {"skill": "code", "difficulty": "easy", "instruction": f"def {name}():"} for name in ("area", "mean", "sort")
    ]
    Path("seeds.json").write_text(json.dumps(seeds))
    Path("both.json").write_text(json.dumps([*seeds, "강 세 개를 말하세요."]))


def test_the_step_and_the_settings_have_the_same_options_and_defaults() -> None:
    own = {name: option for name, option in options(step).items() if name not in ("seeds", "writer")}
    made = Settings()
    assert {*own, "seed"} == {each.name for each in fields(Settings)}
    assert {name: option.default for name, option in own.items()} == {name: getattr(made, name) for name in own}


def test_a_recipe_writes_data_beside_the_model_it_was_written_by() -> None:
    steps = [{"synthesize": {"seeds": "seeds.json", **SMALL}}]
    result = apply({"model": "bundled", "output": "out", "steps": steps})
    record = result.steps[0]["record"]["synthesis"]
    assert record["attempted"] >= 3 and record["writer"] == "model"
    assert prune.verify("out") == []
    lines = Path("out/synthesis/data.jsonl").read_text().split("\n")[:-1]
    assert len(lines) == record["kept"]
    assert "config.json" in files.names("out")
    assert apply({"model": "bundled", "output": "out", "steps": steps}).state == "unchanged"
    Path("seeds.json").write_text('[{"instruction": "other"}]')
    with pytest.raises(PruneError, match="another input"):
        apply({"model": "bundled", "output": "out", "steps": steps})


def test_the_command_and_the_recipe_write_the_same_data() -> None:
    config = {"seeds": "seeds.json", "writer": "bundled", **SMALL}
    synthesize(config, output="alone")
    apply({"model": "bundled", "output": "out", "steps": [{"synthesize": config}]})
    assert Path("alone/data.jsonl").read_bytes() == Path("out/synthesis/data.jsonl").read_bytes()
    assert prune.verify("alone") == []


def test_a_stopped_step_goes_on_from_what_was_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def writer(prompt: str) -> str:
        if len(asked) == stop:
            raise KeyboardInterrupt
        asked.append(prompt)
        return f"Answer {len(prompt)} to {prompt[-9:]}"

    ready = function(writer)
    monkeypatch.setattr(make, "writer", lambda *_, **__: ready)
    recipe = {"model": "bundled", "output": "out", "steps": [{"synthesize": {"seeds": "seeds.json", "rounds": 2}}]}
    stop = -1
    apply(recipe)
    expected, whole = Path("out/synthesis/data.jsonl").read_bytes(), list(asked)
    shutil.rmtree("out")
    asked.clear()
    for stop in (2, 7, len(whole) - 1):  # noqa: B007 - the writer reads it
        with pytest.raises(KeyboardInterrupt):
            apply(recipe)
    stop = -1
    apply(recipe)
    assert asked == whole, "nothing is asked twice"
    assert Path("out/synthesis/data.jsonl").read_bytes() == expected
    assert [path.name for path in Path().iterdir() if path.name.startswith("out")] == ["out"]


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"seeds": "none.json"}, "none.json: no such file"),
        ({"seeds": "seeds.csv"}, "unknown kind of file '.csv'"),
        ({"writer": {"model": "bundled", "batch": 2}}, "unknown option of writer 'batch'; did you mean 'batch_size'?"),
        ({"writer": {"endpoint": "localhost", "model": "m"}}, "endpoint must be as in http://localhost:8000/v1"),
        ({"writer": {"endpoint": "http://x", "model": "m", "prices": {"input": 1.0}}}, "unknown price 'input'"),
        ({"writer": {"endpoint": "http://x", "model": "m", "token": "sk-abc"}}, "token is the name of the variable"),
        ({"writer": {"endpoint": "http://x"}}, "option 'model' of writer is missing"),
        ({"writer": "no/where/at/all"}, "no model folder"),
        ({"operations": {"deep": 1.0}}, "unknown operation 'deep'; did you mean 'deepen'?"),
        ({"operations": {"deepen": 0.0}}, "all weights are 0"),
        ({"budget": {"items": 0}}, "option 'items' of budget"),
        ({"budget": {"money": 1.0}}, "it has none: give it `prices: {prompt: ..., reply: ...}`"),
        ({"budget": {"dollars": 1}}, "unknown option of budget 'dollars'"),
        ({"diversify": {"items": 2, "kinds": ["poem"]}}, "unknown kind 'poem'"),
        ({"diversify": {"items": 2, "kinds": ["글쓰기"]}}, "unknown kind '글쓰기'"),
        (
            {"seeds": "both.json", "diversify": {"items": 2, "formats": ["표"]}},
            "there are seeds in en, which has none of the formats 표",
        ),
        ({"language": "de"}, "unknown language 'de'"),
        ({"languages": ["de.yaml"], "language": "de"}, "de.yaml: cannot be read"),
        ({"rounds": -1}, "rounds must be at least 0"),
        ({"similarity": 2.0}, "similarity must be above 0 and at most 1"),
    ],
)
def test_slips_are_known_before_anything_is_asked_or_written(wrong: dict[str, Any], expected: str) -> None:
    config = {"seeds": "seeds.json", **wrong}
    before = files.names(".")
    recipe = {"model": "bundled", "output": "out", "steps": [{"synthesize": config}]}
    alone = {"writer": "bundled", **config, "output": "out"}
    for run in (lambda: check(recipe), lambda: apply(recipe), lambda: synthesize(alone, dry_run=True)):
        with pytest.raises(PruneError) as caught:
            run()
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)
    assert files.names(".") == before


def test_the_command_says_what_came_out_and_places_slips() -> None:
    Path("c.yaml").write_text("output: out\nseeds: seeds.json\nwriter: bundled\nrounds: 0\nanswer_tokens: 4\n")
    done = CliRunner().invoke(cli, ["synthesize", "c.yaml", "--dry-run"])
    assert (done.exit_code, done.stdout) == (0, "c.yaml: all well; it would write out\n")
    done = CliRunner().invoke(cli, ["synthesize", "c.yaml", "--json"])
    assert json.loads(done.stdout)["attempted"] == 3
    again = CliRunner().invoke(cli, ["synthesize", "c.yaml"])
    assert again.stdout.endswith("out: there already, and what this config makes\n")
    Path("c.yaml").write_text("output: out\nseeds: seeds.json\nwriter: bundled\nrounds: 1\nroundz: 1\n")
    with pytest.raises(PruneError, match=r"c.yaml:5:1 roundz: unknown key 'roundz'; did you mean 'rounds'\?"):
        cli.main(["synthesize", "c.yaml"], standalone_mode=False)
    Path("c.yaml").write_text("output: out\nseeds: seeds.json\nrounds: 1\n")
    with pytest.raises(PruneError, match="no recipe whose model could write"):
        cli.main(["synthesize", "c.yaml"], standalone_mode=False)
    Path("c.yaml").write_text("output: out\nseeds: seeds.json\nwriter: bundled\nrounds: 1\nanswer_tokens: 4\n")
    with pytest.raises(PruneError, match="--overwrite"):
        cli.main(["synthesize", "c.yaml"], standalone_mode=False)
