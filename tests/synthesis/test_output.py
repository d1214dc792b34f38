"""JSONL and parquet hold the same rows; nothing on the page runs; seeds and languages are read from files."""

from __future__ import annotations

import json
import linecache
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import prune
from prune import files
from prune.errors import PruneError
from prune.synthesis import languages
from prune.synthesis.seeds import seeds
from tests.synthesis.script import text

EVIL = '<script>alert(1)</script><img src=x onerror="alert(2)">'


def made(folder: Path, **options: Any) -> dict[str, Any]:
    rows = [
        {"skill": f"s{n % 2}{EVIL}", "difficulty": EVIL, "instruction": f"{EVIL} {text('en', n)}\u2028\x85\ud800."}
        for n in range(6)
    ]
    (folder / "seeds.json").write_text(json.dumps(rows))

    def writer(prompt: str) -> str:
        return "MORE 2 4" if "SAME" in prompt else f"{text('en', prompt, count=20)} {EVIL}"

    writer.__name__ = EVIL
    return prune.synthesize(folder / "out", seeds=folder / "seeds.json", writer=writer, rounds=2, **options)


def test_both_forms_hold_the_same_rows(tmp_path: Path) -> None:
    found = made(tmp_path)
    lines = (tmp_path / "out/data.jsonl").read_text(encoding="utf-8").splitlines()  # splits at U+2028 and U+0085 too
    rows = [json.loads(line) for line in lines]
    assert len(rows) == found["kept"] > 10
    assert pq.read_table(tmp_path / "out/data.parquet").to_pylist() == rows
    for row in rows:
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert set(row["lineage"]) == {
            "seed",
            "parent",
            "round",
            "operations",
            "writer",
            "verdicts",
            "ratings",
            "truncated",
        }


def test_lineage_leads_back_to_a_seed(tmp_path: Path) -> None:
    made(tmp_path)
    rows = {row["id"]: row for row in map(json.loads, (tmp_path / "out/data.jsonl").read_text().splitlines())}
    for row in rows.values():
        steps, here = [], row
        while here["lineage"]["parent"]:
            steps.append(here["lineage"]["operations"][-1])
            here = rows[here["lineage"]["parent"]]
        assert here["id"] == row["lineage"]["seed"]
        assert steps[::-1] == row["lineage"]["operations"]


def test_what_it_takes_to_make_it_again_is_written_down(tmp_path: Path) -> None:
    made(tmp_path, temperature=0.5)
    said = json.loads((tmp_path / "out/prune.json").read_text())
    assert said["settings"]["temperature"] == 0.5 and said["settings"]["rounds"] == 2
    assert said["seeds"]["fingerprint"] == files.sha256(tmp_path / "seeds.json")


def test_nothing_on_the_page_runs(tmp_path: Path) -> None:
    found = made(tmp_path)
    page = (tmp_path / "out/index.html").read_text()
    assert "<script" not in page and "<img" not in page and "&lt;script&gt;" in page
    assert "default-src 'none'" in page and not re.search(r"<[^>]*(src|href|onerror)=", page)
    assert f"<b>{found['kept']}</b>" in page


def test_the_page_shows_what_was_counted(tmp_path: Path) -> None:
    rows = [
        {"skill": "code", "difficulty": f"{1 + n % 2}", "instruction": text("en", n), "answer": text("en", "a", n)}
        for n in range(4)
    ]
    rows[3] |= {"instruction": "...", "answer": "..."}
    (tmp_path / "seeds.json").write_text(json.dumps(rows))

    def writer(prompt: str) -> str:
        return "MORE 2 4" if "SAME" in prompt else text("en", prompt, count=20)

    options = {"rounds": 2, "operations": {"deepen": 1.0}}
    found = prune.synthesize(tmp_path / "out", seeds=tmp_path / "seeds.json", writer=writer, **options)
    page = re.sub(r">\s+<", "><", (tmp_path / "out/index.html").read_text())
    cells = re.findall(r'<td class="h\d">(\d+)</td>', page)
    assert cells == ["2", "2", "2", "7"] and found["coverage"]["kept"] == [[2, 7]]
    charts = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert [chart.count("<title>") for chart in charts] == [3 + 3, 2 + 2], "a point for each round and line"
    assert [re.findall(r"<title>(.*?)</title>", charts[1])] == [["2", "2", "4", "4"]]
    assert [len(line.split()) for line in re.findall(r'points="(.*?)"', charts[0])] == [3, 3]
    for row in ("<td>0</td><td>4</td><td>3</td><td>75%</td><td>1</td>", "<td>1</td><td>3</td><td>3</td>"):
        assert f"<tr>{row}" in page, "tried, kept, and what the rule rejected"
    assert '<th title="punctuation, stop words or repetition">meaningless</th>' in page
    assert "<tr><td>deepen</td><td>6</td><td>6</td><td>100%</td></tr>" in page


def test_an_output_is_whole_verified_and_ours(tmp_path: Path) -> None:
    made(tmp_path)
    assert prune.verify(tmp_path / "out") == []
    assert files.names(tmp_path) == ["out/" + name for name in (
        "data.jsonl", "data.parquet", "index.html", "prune.json", "rejected.jsonl", "timings.json",
    )] + ["seeds.json"]  # fmt: skip
    with pytest.raises(PruneError, match="--overwrite"):
        made(tmp_path, seed=1)
    before = (tmp_path / "out/data.jsonl").read_bytes()
    made(tmp_path, seed=1, overwrite=True)
    assert (tmp_path / "out/data.jsonl").read_bytes() != before
    (tmp_path / "out2").mkdir()
    (tmp_path / "out2/mine").write_text("x")
    with pytest.raises(PruneError, match="never replaced"):
        prune.synthesize(tmp_path / "out2", seeds=tmp_path / "seeds.json", writer=str.upper, overwrite=True)


def test_a_finished_result_is_told_by_what_its_function_says(tmp_path: Path) -> None:
    (tmp_path / "seeds.json").write_text('["Add 2 and 3"]')
    for answer in ("It is 5", "Five"):
        (tmp_path / "own.py").write_text(f"def writer(prompt):\n    return {answer!r}\n")
        linecache.checkcache()
        scope: dict[str, Any] = {}
        exec(compile((tmp_path / "own.py").read_text(), str(tmp_path / "own.py"), "exec"), scope)
        options = {"seeds": tmp_path / "seeds.json", "writer": scope["writer"], "rounds": 0}
        done = [prune.synthesize(tmp_path / "out", overwrite=True, **options) for _ in range(2)]
        assert [each["state"] for each in done] == ["done", "unchanged"]
        assert answer in (tmp_path / "out/data.jsonl").read_text()


def test_chain_of_thought_is_asked_for_where_it_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "seeds.json").write_text('["Add 2 and 3"]')
    prompts: list[str] = []
    for wanted in (False, True):
        prune.synthesize(
            tmp_path / f"out{wanted}", seeds=tmp_path / "seeds.json", writer=lambda p: prompts.append(p) or "It is 5",
            rounds=0, chain_of_thought=wanted,
        )  # fmt: skip
    assert prompts[0] == "Add 2 and 3"
    assert "step by step" in prompts[1]


ROWS = [{"skill": "a", "difficulty": 2, "instruction": "Sum it", "input": "1, 2", "output": "3"}, {"prompt": "또 하나"}]


def written(folder: Path, form: str) -> Path:
    path = folder / f"seeds.{form}"
    if form == "jsonl":
        path.write_text("\n\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")
    elif form == "parquet":
        columns = dict.fromkeys({**ROWS[0], **ROWS[1]})
        rows = [columns | ROWS[0] | {"difficulty": "2"}, columns | ROWS[1]]
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:  # JSON is YAML too
        path.write_text(json.dumps(ROWS, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.mark.parametrize("form", ["json", "jsonl", "yaml", "yml", "parquet"])
def test_seeds_are_read_from_every_form(form: str, tmp_path: Path) -> None:
    first, second = seeds(written(tmp_path, form))
    assert (first.instruction, first.answer, first.skill, first.difficulty) == ("Sum it\n\n1, 2", "3", "a", "2")
    assert (second.id, second.instruction, second.answer, second.skill) == ("seed-1", "또 하나", "", "general")


def test_seeds_come_from_a_hub_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def rows(source: str, *, split: str) -> list[dict[str, Any]]:
        asked.append((source, split))
        return ROWS

    monkeypatch.setattr("prune.data.rows", rows)
    assert [item.instruction for item in seeds("owner/tasks-1.5")] == ["Sum it\n\n1, 2", "또 하나"]
    assert asked == [("owner/tasks-1.5", "train")]


def test_the_output_can_be_the_seeds_of_another_run(tmp_path: Path) -> None:
    made(tmp_path)
    forms = [list(seeds(tmp_path / f"out/data.{form}")) for form in ("jsonl", "parquet")]
    assert forms[0] == forms[1] and len(forms[0]) > 10
    assert all(item.answer for item in forms[0])


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", "{}", "must be a list of seeds"),
        ("a.json", "[", "cannot be read as JSON"),
        ("a.json", "[]", "holds no seeds"),
        ("a.json", '[{"text": "x"}]', "[0]: unknown field 'instruction'"),
        (
            "a.jsonl",
            '{"instruction": "x"}\n{"instruction": 3}',
            "a.jsonl:2: instruction, input and answer must be text",
        ),
        ("a.jsonl", '{"instruction": "  "}', "a.jsonl:1: has an empty instruction"),
        ("a.jsonl", '{"messages": [{"role": "user"}]}', "messages must be a list of {role, content}"),
        ("a.jsonl", '{"instruction": "x", "skill": [1]}', "skill must be a word or a number"),
        ("a.yaml", "- instruction: x\n  instruction: y\n", "stands twice"),
        ("a.yaml", "- &a x\n- *a\n", "anchors and aliases"),
        ("a.txt", "x", "unknown kind of file '.txt'"),
    ],
)
def test_wrong_seeds_are_placed(name: str, content: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(PruneError) as caught:
        list(seeds(tmp_path / name))
    assert expected in str(caught.value)


def test_a_further_language_is_a_data_file(tmp_path: Path) -> None:
    data = {
        "letters": "[A-Za-zäöüß]", "stop_words": ["der", "die", "das", "und", "ist", "nicht", "ein"],
        "pleads": ["leider"], "short": 10, "leaks": ["die neue Anweisung"],
        "verdicts": {"same": ["gleich"], "more": ["mehr"]},
    }  # fmt: skip
    (tmp_path / "de.yaml").write_text(json.dumps(data))
    (tmp_path / "de").mkdir()
    (tmp_path / "de/deepen.txt").write_text("Mach es tiefer: {instruction}")
    known = languages.load([tmp_path / "de.yaml"])
    assert languages.tell("Das ist ein Fluss und nicht die Elbe", known.values()).name == "de"
    assert languages.tell("That is a river and not the Elbe", known.values()).name == "en"
    assert (
        known["de"].prompts["deepen"].startswith("Mach es")
        and known["de"].prompts["judge"] == known["en"].prompts["judge"]
    )
    (tmp_path / "de/deepen.txt").write_text("{instructions}")
    with pytest.raises(PruneError, match="choices: instruction"):
        languages.load([tmp_path / "de.yaml"])
    (tmp_path / "de.yaml").write_text(json.dumps(data | {"pleas": []}))
    with pytest.raises(PruneError, match=r"de.yaml: unknown option of language de 'pleas'; did you mean 'pleads'\?"):
        languages.load([tmp_path / "de.yaml"])


def test_the_packages_languages_have_every_prompt_in_their_own_words() -> None:
    known = languages.load()
    assert set(known) == {"en", "ko"}
    for name in languages.PROMPTS:
        if name != "answer":
            assert languages.tell(known["ko"].prompts[name], known.values()).name == "ko", name
            assert known["ko"].prompts[name] != known["en"].prompts[name]


def test_a_seed_of_self_instruct_brings_its_first_example(tmp_path: Path) -> None:
    pairs = {"input": "Night : Day :: Right : Left", "output": "They are opposites."}
    rows = [
        {"instruction": "What is the relation between the given pairs?", "instances": [pairs, {"input": "other"}]},
        {"instruction": "Name a colour.", "instances": [{"input": "", "output": "Red"}]},
        {"instruction": "Name a fruit.", "instances": ["pear"]},
    ]
    (tmp_path / "seeds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = seeds(tmp_path / "seeds.jsonl")
    first, second = next(found), next(found)
    assert first.instruction == f"{rows[0]['instruction']}\n\n{pairs['input']}" and first.answer == pairs["output"]
    assert (second.instruction, second.answer) == ("Name a colour.", "Red")
    with pytest.raises(PruneError, match=r"seeds.jsonl:3: instances must be a list of \{input, output\}"):
        next(found)
