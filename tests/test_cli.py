"""The command line: results on stdout, one line per mistake on stderr, exit codes, Ctrl-C."""

# ruff: noqa: E501  # tables of long lines
from __future__ import annotations

import io
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import prune
from prune import bundled, cli, files, listing, progress
from prune.document import read
from prune.errors import PruneError
from prune.recipe import loop
from prune.recipe.load import shelf
from prune.recipe.new import new
from prune.report import table
from prune.report.card import card
from tests.fakes import CALLS, PARTS, command

RECIPE = "model: big\noutput: out/small\nsteps:\n  - remove: {count: 2}\n  - evaluate\n"
ROOT = Path(prune.__file__).parents[1]
REAL_PARTS = loop.default_parts


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "default_parts", lambda: PARTS)
    Path("big").mkdir()
    Path("big/weights.txt").write_text("abcdefghijklmnop")
    Path("recipe.yaml").write_text(RECIPE)
    CALLS.clear()


def test_apply_prints_one_table_on_stdout_and_the_rest_on_stderr(capsys):
    assert cli.run(["apply", "recipe.yaml"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].split() == ["before", "after", "change"]
    assert [line.split()[0] for line in lines[1:]] == [
        "letters",
        "parameters",
        "bytes",
        "latency",
        "perplexity",
        "proof",
        "files:",
    ]
    assert lines[1].endswith("2 of 16")
    assert lines[2].split() == ["parameters", "16", "14", "-12.5", "%"]
    assert lines[-2:] == ["proof of step 1: masked equals sliced to 3.0e-07 (allowed: 1e-04)", "files: out/small"]
    assert err.splitlines() == ["step 1 of 2: remove", "step 2 of 2: evaluate", "warning: letters are few"]


def test_quiet_says_nothing_but_the_result(capsys):
    assert cli.run(["apply", "recipe.yaml", "-q", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    result = json.loads(out)
    assert (result["state"], result["output"]) == ("done", "out/small")
    assert result["changes"]["parameters"] == {
        "name": "parameters",
        "before": 16,
        "after": 14,
        "ratio": None,
        "unsure": False,
    }
    assert cli.run(["apply", "recipe.yaml", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["state"] == "unchanged"
    assert "nothing to do" in err


def test_verbose_says_more(capsys):
    assert cli.run(["apply", "recipe.yaml", "-v"]) == 0
    assert " s on cpu" in capsys.readouterr().err


def test_check_and_dry_run_write_nothing(capsys):
    before = files.names(".")
    assert cli.run(["check", "recipe.yaml", "--set", "steps.0.count=4"]) == 0
    said = capsys.readouterr().out
    assert "4 of 16" in said
    assert "checked: nothing was run or written" in said
    assert cli.run(["apply", "recipe.yaml", "--set", "steps.0.count=4", "--dry-run"]) == 0
    assert capsys.readouterr().out == said
    assert (CALLS, files.names(".")) == ([], before)


def test_options_reach_the_run(capsys):
    assert (
        cli.run(
            ["apply", "recipe.yaml", "--output", "there", "--set", "steps.0.count=1", "--set", "seed=7", "--keep-steps"]
        )
        == 0
    )
    assert json.loads(Path("there/prune.json").read_text())["seed"] == 7
    assert Path("there/weights.txt").read_text() == "bcdefghijklmnop"
    assert Path("there.work").is_dir()
    assert cli.run(["apply", "recipe.yaml", "--output", "there"]) == 2
    assert cli.run(["apply", "recipe.yaml", "--output", "there", "--restart", "--overwrite"]) == 0
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["aply"], "prune: No such command 'aply'. Did you mean 'apply'?"),
        (["apply", "recipe.yaml", "--overwite"], "prune: No such option '--overwite'. (Did you mean one of: '--overwrite'"),
        (["apply"], "prune: Missing argument 'RECIPE'."),
        (["apply", "recipe.yml"], "prune: recipe.yml: no such recipe; did you mean 'recipe.yaml'? packaged ones:"),
        (["apply", "recipe.yaml", "--device", "gpu"], "prune: Invalid value for '--device': 'gpu' is not one of"),
        (["apply", "recipe.yaml", "--device", "cuda"], "prune: --device cuda: no CUDA device is here; choices: auto, cpu"),
        (["check", "recipe.yaml", "--set", "steps.0.cuont=1"], "prune: --set steps.0.cuont=1: unknown option of remove 'cuont'; did you mean 'count'?"),
        (["check", "recipe.yaml", "--set", "steps.0.count=99"], "prune: --set steps.0.count=99 steps[0].remove.count: count must leave something"),
        (["verify", "big"], "prune: big: has no prune.json, so it is not an output of prune"),
        (["verify", "none"], "prune: none: has no prune.json"),
        (["new", "recipe"], "prune: recipe.yaml: exists; choose another name"),
        (["new", "a/b"], "prune: a/b.yaml: cannot be written: No such file or directory"),
        (["new", "a b"], "prune: a b: a recipe's name has letters"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_2(capsys, arguments, expected):
    before = files.names(".")
    assert cli.run(arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith(expected)
    assert (out, err.count("\n"), files.names(".")) == ("", 1, before)


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("PRUNE_DEBUG", "1")
    with pytest.raises(PruneError):
        cli.run(["apply", "none"])


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    setup = command("tests.fakes", *arguments, call="command_line")
    return subprocess.run(**setup | {"env": setup["env"] | environment}, stderr=subprocess.PIPE, text=True, check=False)


def test_an_error_of_ours_is_one_line_and_1():
    ended = process("apply", "recipe.yaml", "-q", "--set", "steps.1.crash=true")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "prune: RuntimeError: a bug of ours (set PRUNE_DEBUG=1 for the traceback)\n"
    ended = process("apply", "recipe.yaml", "-q", "--set", "steps.1.crash=true", PRUNE_DEBUG="1")
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr


def test_ctrl_c_ends_a_long_call_at_once_and_says_how_to_go_on():
    line = ["apply", "recipe.yaml", "--set", "output=out dir", "--set", "steps.1.busy=true", "--restart"]
    setup = command("tests.fakes", *line, call="command_line")
    with subprocess.Popen(**setup, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.readline() == "busy\n"
        running.send_signal(signal.SIGINT)
        began = time.monotonic()
        assert running.wait(10) == 130
        assert time.monotonic() - began < 2
        said = running.stderr.read().splitlines()[-1]
    assert said.endswith("prune apply recipe.yaml --set 'output=out dir' --set steps.1.busy=true")
    ended = process("apply", "recipe.yaml", "--set", "output=out dir", "--set", "steps.1.fail=false")
    assert "step 1 of 2: remove, finished before" in ended.stderr
    assert sorted(os.listdir()) == ["big", "out dir", "recipe.yaml"]  # noqa: PTH208


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['prune', '--help']; from prune import cli; code = cli.run(['--help'])\n"
        "heavy = {'torch', 'transformers', 'rich', 'pydantic', 'yaml', 'numpy', 'datasets'} & set(sys.modules)\n"
        "assert code == 0 and not heavy, heavy"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "apply" in ended.stdout


def test_the_module_is_the_command():
    ended = subprocess.run(
        [sys.executable, "-m", "prune", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ended.stdout == f"prune, version {prune.__version__}\n"


def test_a_closed_pipe_is_no_traceback():
    line = f"'{sys.executable}' -m prune list | true"
    ended = subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.stderr == ""


def test_verify_says_what_differs(capsys):
    cli.run(["apply", "recipe.yaml", "-q"])
    capsys.readouterr()
    assert cli.run(["verify", "out/small"]) == 0
    assert "5 files, all as they were written" in capsys.readouterr().out
    Path("out/small/weights.txt").write_text("x")
    assert cli.run(["verify", "out/small"]) == 1
    assert capsys.readouterr().out == "out/small/weights.txt: changed\n"
    assert cli.run(["verify", "out/small", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["problems"] == ["weights.txt: changed"]
    Path("out/small/own.txt").write_text("x")
    assert cli.run(["verify", "out/small"]) == 1
    assert "out/small/own.txt: not listed" in capsys.readouterr().out


def test_list_reads_names_and_docstrings(capsys):
    assert cli.run(["list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for kind, (folder, _) in listing.FOLDERS.items():
        assert found[kind]
        assert all(line.endswith(".") for line in found[kind].values()), kind
        assert set(found[kind]) <= {path.stem for path in (ROOT / "prune" / folder).glob("*.py")}
    assert {"remove", "evaluate", "export"} <= set(found["steps"])
    assert "quickstart" in found["recipes"]
    assert cli.run(["list"]) == 0
    assert "wanda" in capsys.readouterr().out


def test_new_writes_a_commented_recipe(capsys):
    assert cli.run(["new", "mine"]) == 0
    assert capsys.readouterr().out == "mine.yaml written; next: prune check mine.yaml\n"
    assert read("mine.yaml").value["output"] == "out/mine"
    assert Path("mine.yaml").read_text().count("#") > 8


@pytest.mark.parametrize("name", [*shelf(), "new"])
def test_every_recipe_that_comes_with_the_package_passes_check(name, monkeypatch):
    Path("models").mkdir()
    for stand_in in ("base", "one", "two"):  # what recipes that merge call the user's own models
        Path("models", stand_in).symlink_to(bundled.folder())
    monkeypatch.setattr(loop, "default_parts", REAL_PARTS)
    assert loop.check(new("mine") if name == "new" else name).state == "checked"


def test_the_recipe_reference_is_up_to_date():
    namespace = runpy.run_path(str(ROOT / "docs" / "make_recipe_reference.py"))
    assert namespace["PAGE"].read_text() == namespace["page"](), "run python docs/make_recipe_reference.py"


def test_tables_are_plain_off_a_terminal_and_drawn_on_one(monkeypatch):
    rows = table.Table(("name", "n"), [("[red]a\x1b[2J", "1"), ("b", "10")], frozenset({1}))
    stream = io.StringIO()
    table.show([rows, "done\n"], stream)
    lines = ["name            n", "[red]a\\x1b[2J   1", "b              10", "done\\n"]
    assert stream.getvalue().splitlines() == lines
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    table.show([rows], terminal)
    assert "[red]a\\x1b[2J" in terminal.getvalue()
    assert "─" in terminal.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_a_plain_line_now_and_then(monkeypatch):
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    with progress.Progress(stream=stream).track("layers", 9) as advance:
        for _ in range(9):
            advance()
    assert stream.getvalue().splitlines() == ["layers: 3 of 9", "layers: 6 of 9", "layers: 9 of 9"]


def test_progress_is_one_bar_on_a_terminal_and_nothing_when_quiet():
    terminal = Terminal()
    shown = progress.Progress(stream=terminal)
    with shown.track("outer", 2) as advance, shown.track("inner", 3) as inside:
        advance()
        inside(3)
        shown.say("a line")
    assert "a line" in terminal.getvalue()
    assert "inner" not in terminal.getvalue()
    quiet = Terminal()
    with progress.Progress(quiet=True, stream=quiet).track("layers", 2) as advance:
        advance()
    assert quiet.getvalue() == ""


def test_names_from_outside_are_escaped_in_the_model_card():
    nasty = "<script>alert(1)</script> | `x` [a](b)\n# head ```"
    manifest = {
        "model": {"source": nasty},
        "versions": {"prune": "1"},
        "recipe": {"model": nasty, "calibration": {"data": nasty}, "steps": ["```\n<script>"]},
        "steps": [
            {
                "word": "remove",
                "record": {"removed": {nasty: nasty}, "perplexity": {"data": nasty, "before": 2.0, "after": 3.0}},
            }
        ],
    }
    text = card(manifest, model_type="llama", base_model="a/b\nlicense: evil", licence="apache-2.0")
    front, body = text.split("---\n", 2)[1:]
    stated = yaml.safe_load(front)
    assert stated.pop("model-index")[0]["results"][0]["dataset"]["name"] == nasty
    assert stated == {
        "base_model": "a/b\nlicense: evil",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "license": "apache-2.0",
        "tags": ["pruned", "structured-pruning"],
    }
    prose, _, code = body.partition("````yaml\n")
    assert "<script>" not in prose
    assert [
        line.count("|") - line.count("\\|") for line in prose.splitlines() if "alert" in line and line[0] == "|"
    ] == [3]
    assert code.count("````") == 1
    assert "prune.load" in card(manifest, model_type="prune_llama", base_model=None, licence=None)


def test_sensitivity_prints_a_table_and_writes_it_and_a_picture(capsys):
    arguments = ["sensitivity", "bundled", "--samples", "1", "--length", "16", "--ratio", "0.5", "--what", "channels"]
    assert cli.run([*arguments, "--what", "mlp", "--csv", "s.csv", "--plot", "s.svg", "--json", "-q"]) == 0
    points = json.loads(capsys.readouterr().out)
    assert [(p["kind"], p["layer"]) for p in points] == [(kind, i) for kind in ("channels", "mlp") for i in range(6)]
    assert len(Path("s.csv").read_text().splitlines()) == 13
    drawn = Path("s.svg").read_bytes()
    assert cli.run([*arguments, "--what", "mlp", "--plot", "s.svg", "-q"]) == 0
    assert Path("s.svg").read_bytes() == drawn
    out = capsys.readouterr().out
    assert "50 %" in out and "channels" in out
    assert cli.run([*arguments, "--plot", "s.gif"]) == 2
