"""Recipes: strict YAML, signatures, overrides; every mistake is one line that says where, what and the choices."""

# ruff: noqa: E501  # a table of long lines reads better than one of broken ones
from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field
from typing_extensions import TypedDict

from prune.document import MAX_DEPTH, parse, read
from prune.errors import PruneError
from prune.recipe.load import load

Kind = Literal["heads", "channels", "layers"]


class Solver(TypedDict, total=False):
    rounds: int


class Refit(TypedDict, total=False):
    damping: float
    solver: Solver | list[Solver]


def remove(
    run: Any,
    *,
    what: Kind | list[Kind],
    ratio: Annotated[float, Field(ge=0, lt=1)] | None = None,
    count: Annotated[int, Field(ge=1)] | None = None,
    criterion: str = "wanda",
    protect: list[str] | None = None,
    budget: dict[str, float] | None = None,
    refit: bool | Refit = False,
) -> None: ...


def evaluate(run: Any, *, perplexity: str | None = None, speed: bool = False) -> None: ...


WORDS = {"remove": remove, "evaluate": evaluate}
GOOD = """\
# a comment
model: bundled
output: out/small
calibration: {data: python-docs, samples: 8}
steps:
  - remove: {what: [channels, heads], ratio: 0.25}
  - remove: {what: layers, count: 1}
  - evaluate
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> str:
        Path("recipe.yaml").write_text(text)
        return "recipe.yaml"

    return write


def complaint(path: str, *overrides: str) -> str:
    with pytest.raises(PruneError) as caught:
        load(path, WORDS, overrides=overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_good_recipe_becomes_calls(recipe):
    loaded = load(recipe(GOOD), WORDS)
    assert (loaded.model, loaded.revision, loaded.seed, loaded.device, loaded.dtype) == (
        "bundled",
        None,
        0,
        "auto",
        "auto",
    )
    assert [(step.word, step.options) for step in loaded.steps] == [
        ("remove", {"what": ["channels", "heads"], "ratio": 0.25}),
        ("remove", {"what": "layers", "count": 1}),
        ("evaluate", {}),
    ]
    assert loaded.steps[0].bound["criterion"] == "wanda"
    assert loaded.calibration is not None
    assert (loaded.calibration.samples, loaded.calibration.split) == (8, None)


def test_a_dict_is_a_recipe_too():
    assert load({"model": "m", "steps": [{"evaluate": {"speed": True}}]}, WORDS).steps[0].options == {"speed": True}


def test_a_dict_may_hold_paths_and_tuples():
    steps = ({"remove": {"what": ("heads", "channels"), "ratio": 0.5}},)
    loaded = load({"model": Path("m"), "output": Path("out"), "steps": steps}, WORDS)
    assert (loaded.model, loaded.output) == ("m", "out")
    assert loaded.steps[0].options["what"] == ["heads", "channels"]
    assert loaded.given["output"] == "out"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("- evaluate", "- evalute", "recipe.yaml:8:5 steps[2].evalute: unknown step 'evalute'; did you mean 'evaluate'? choices: evaluate, remove"),
        ("ratio:", "ratoi:", "recipe.yaml:6:39 steps[0].remove.ratoi: unknown option 'ratoi'; did you mean 'ratio'? choices: budget, count"),
        ("0.25", "1.5", "recipe.yaml:6:46 steps[0].remove.ratio: ratio must be at least 0 and below 1, not 1.5"),
        ("0.25", "1", "recipe.yaml:6:46 steps[0].remove.ratio: ratio must be at least 0 and below 1, not 1"),
        ("0.25", "-0.1", "ratio must be at least 0 and below 1, not -0.1"),
        ("0.25", "'0.25'", "ratio must be a number at least 0 and below 1, or null, not '0.25'"),
        ("0.25", "true", "ratio must be a number at least 0 and below 1, or null, not true"),
        ("0.25", "[1]", "ratio must be a number at least 0 and below 1, or null, not a list"),
        ("count: 1", "count: 0", "recipe.yaml:7:35 steps[1].remove.count: count must be at least 1, not 0"),
        ("count: 1", "count: 1.0", "count must be a whole number at least 1, or null, not 1.0"),
        ("heads]", "haeds]", "recipe.yaml:6:31 steps[0].remove.what[1]: unknown what[1] 'haeds'; did you mean 'heads'? choices: channels, heads"),
        ("what: layers", "what: layer", "recipe.yaml:7:20 steps[1].remove.what: unknown what 'layer'; did you mean 'layers'? choices:"),
        ("what: layers", "what: 3", "what must be one of heads, channels, layers, or a list, each one of heads, channels, layers, not 3"),
        ("what: layers, ", "", "recipe.yaml:7:13 steps[1].remove: what is missing: one of heads, channels, layers"),
        ("count: 1", "protect: [a, 1]", "steps[1].remove.protect[1]: protect[1] must be text, not 1"),
        ("count: 1", "budget: {a: x}", "steps[1].remove.budget.a: budget.a must be a number, not 'x'"),
        ("count: 1", "refit: {dampin: 1.0}", "recipe.yaml:7:36 steps[1].remove.refit.dampin: unknown option 'dampin'; did you mean 'damping'? choices: damping, solver"),
        ("count: 1", "refit: {damping: x}", "steps[1].remove.refit.damping: refit.damping must be a number, not 'x'"),
        ("count: 1", "refit: {solver: {round: 1}}", "steps[1].remove.refit.solver.round: unknown option 'round'; did you mean 'rounds'? choices: rounds"),
        ("count: 1", "refit: {solver: [{round: 1}]}", "steps[1].remove.refit.solver[0].round: unknown option 'round'; did you mean 'rounds'? choices: rounds"),
        ("- evaluate", "- evaluate: {speed: no}", "speed must be true or false, not 'no'"),
        ("- evaluate", "- evaluate: [speed]", "recipe.yaml:8:15 steps[2].evaluate: must be a mapping of options, not a list"),
        ("- evaluate", "- {evaluate: , remove: }", "recipe.yaml:8:5 steps[2]: a step is one word with its options"),
        ("- evaluate", "- 3", "recipe.yaml:8:5 steps[2]: a step is one word"),
        ("output:", "ouptut:", "recipe.yaml:3:1 ouptut: unknown key 'ouptut'; did you mean 'output'?"),
        ("samples: 8", "smaples: 8", "recipe.yaml:4:34 calibration.smaples: unknown key 'smaples'; did you mean 'samples'?"),
        ("samples: 8", "samples: 0", "recipe.yaml:4:43 calibration.samples: samples must be at least 1, not 0"),
        ("data: python-docs, ", "", "recipe.yaml:4:14 calibration: data is missing: text"),
        ("model: bundled\n", "", "model is missing"),
        ("model: bundled", "model: {id: a, revison: b}", "recipe.yaml:2:16 model.revison: unknown key 'revison'; did you mean 'revision'?"),
        ("model: bundled", "model: bundled\ndtype: float8", "recipe.yaml:3:8 dtype: unknown dtype 'float8'; did you mean 'float32'?"),
        ("model: bundled", "model: bundled\nmodel: again", "recipe.yaml:3:1: key 'model' stands twice, first at 2:1"),
        ("model: bundled", "seed: &a 1\nmodel: bundled", "recipe.yaml:2:7 seed: anchors and aliases (& and *) are not read"),
        ("bundled", "!!python/name:os.system", "recipe.yaml:2:8 model: tags such as 'tag:yaml.org,2002:python/name:os.system' are not read"),
        ("bundled", "!!str bundled", "tags such as"),
        ("model: bundled", "1: bundled", "recipe.yaml:2:1: a key must be text"),
        ("model: bundled", "? [a]\n: b", "recipe.yaml:2:3: a key must be text"),
        ("steps:", "--- \nsteps:", "holds a second document"),
        ("0.25}", "0.25", "recipe.yaml:7:11: is not YAML: while parsing a flow mapping expected ',' or '}', but got ':'"),
        ("bundled", "a\x00b", "recipe.yaml:2:9: is not YAML: the character #x0000 may not stand here"),
        ("bundled", "1e999", "recipe.yaml:2:8: the number 1e999 is too large"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_its_place(recipe, old, new, expected):
    assert old in GOOD
    said = complaint(recipe(GOOD.replace(old, new, 1)))
    assert said.startswith("recipe.yaml:")
    assert expected in said


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "recipe.yaml:1:1: must be a mapping such as `model: bundled`, not an empty file"),
        ("# nothing", "not an empty file"),
        ("- a\n- b", "recipe.yaml:1:1: must be a mapping such as `model: bundled`, not a list"),
        ("bundled", "not 'bundled'"),
        ("a: *b", "recipe.yaml:1:4 a: anchors and aliases"),
        ("model: " + "[" * 5000, f"is nested more than {MAX_DEPTH} levels deep"),
        ("model: m\nsteps: []", "recipe.yaml:2:8 steps: steps is empty; choices: remove, evaluate"),
        ("model: m\nsteps: remove", "recipe.yaml:2:8 steps: steps must be a list, not 'remove'"),
    ],
)
def test_what_is_no_recipe_is_refused(recipe, text, expected):
    assert expected in complaint(recipe(text))


def test_files_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_bytes(b"model: \xff")
    with pytest.raises(PruneError, match=r"is not UTF-8 text \(byte 7\)"):
        read(path)
    path.write_bytes(b"#" * 1_000_001)
    with pytest.raises(PruneError, match="larger than 1 MB"):
        read(path)
    with pytest.raises(PruneError, match="cannot be read"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1.", 1.0), (".5", 0.5), ("-3", -3), ("+3", 3), ("0777", 777), ("true", True), ("null", None), ("~", None),
        ("no", "no"), ("on", "on"), ("1:30", "1:30"), ("1_000", "1_000"), ("2020-01-01", "2020-01-01"), (".inf", ".inf"),
        ("'1'", "1"), ("1.2.3", "1.2.3"), ("True", True), ("TRUE", True), ("False", False), ("FALSE", False), ("Null", None), ("tRue", "tRue"), ("e4", "e4"), (".", "."),
    ],
)  # fmt: skip
def test_plain_words_are_read_by_yaml_1_2(text, value):
    found = parse(f"a: {text}", "t").value["a"]
    assert (found, type(found)) == (value, type(value))


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text):
    try:
        assert isinstance(parse(text, "t").value, dict)
    except PruneError as error:
        assert "\n" not in str(error)  # noqa: PT017  # both outcomes are right


@pytest.mark.parametrize(
    ("override", "check"),
    [
        ("steps.0.ratio=0.5", lambda r: r.steps[0].options["ratio"] == 0.5),
        ("steps.0.remove.ratio=0.5", lambda r: r.steps[0].options["ratio"] == 0.5),
        ("steps.0.criterion=random", lambda r: r.steps[0].options["criterion"] == "random"),
        ("steps.0.what.1=layers", lambda r: r.steps[0].options["what"] == ["channels", "layers"]),
        ("steps.0.what=[layers]", lambda r: r.steps[0].options["what"] == ["layers"]),
        ("steps.2.speed=true", lambda r: r.steps[2].options == {"speed": True}),
        ("steps.2={remove: {what: heads, count: 1}}", lambda r: r.steps[2].word == "remove"),
        ("calibration.samples=16", lambda r: r.calibration.samples == 16),
        ("calibration.length=64", lambda r: r.calibration.length == 64),
        ("seed=3", lambda r: r.seed == 3),
        ("model.revision=main", lambda r: (r.model, r.revision) == ("bundled", "main")),
        ("model=a=b", lambda r: r.model == "a=b"),
    ],
)  # fmt: skip
def test_set_replaces_and_adds(recipe, override, check):
    assert check(load(recipe(GOOD), WORDS, overrides=[override]))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("steps.0.ratoi=0.5", "--set steps.0.ratoi=0.5: unknown option of remove 'ratoi'; did you mean 'ratio'?"),
        (
            "steps.3.ratio=0.5",
            "--set steps.3.ratio=0.5: '3' is not the place of an entry of steps: it has 3, counted from 0",
        ),
        ("step.0.ratio=0.5", "unknown key 'step'; did you mean 'steps'?"),
        ("calibration.sample=4", "unknown key of calibration 'sample'; did you mean 'samples'?"),
        (
            "steps.0.ratio=1.5",
            "--set steps.0.ratio=1.5 steps[0].remove.ratio: ratio must be at least 0 and below 1, not 1.5",
        ),
        ("steps.0.ratio", "--set steps.0.ratio: needs PATH=VALUE"),
        ("steps.0.ratio=[", "--set steps.0.ratio=[:1:2: is not YAML"),
        ("seed.a=1", "nothing inside"),
        ("steps.0.ratio.x=1", "--set steps.0.ratio.x=1: ratio has nothing inside"),
    ],
)
def test_set_answers_an_unknown_path_with_the_nearest(recipe, override, expected):
    assert expected in complaint(recipe(GOOD), override)


def test_a_missing_recipe_is_answered_with_the_nearest(recipe):
    recipe(GOOD)
    assert "did you mean 'recipe.yaml'?" in complaint("recipes.yaml")
    assert "packaged ones:" in complaint("nothing-like-it")
    assert "is a folder" in complaint(".")


def test_a_step_places_its_errors(recipe):
    step = load(recipe(GOOD), WORDS).steps[0]
    assert str(step.blame(PruneError("no"))) == "recipe.yaml:6:5 steps[0].remove: no"
    assert str(step.blame(PruneError("no", where="ratio"))) == "recipe.yaml:6:46 steps[0].remove.ratio: no"
    assert str(step.blame(PruneError("no", where="criterion"))) == "recipe.yaml:6:5 steps[0].remove: no"
    assert (
        str(step.blame(PruneError("no", where="model/config.json")))
        == "recipe.yaml:6:5 steps[0].remove: model/config.json: no"
    )
