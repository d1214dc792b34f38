"""Runs side by side: only what was measured alike stands on one plot, and the front holds what nothing beats."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from prune import cli, files
from prune.report.compare import comparison, entry, front
from tests.report.sample import everything
from tests.report.test_page import SCRIPT, Page


def changed(
    name: str, *, mark: str = "", parameters: int = 2_000_000, batch: int | None = None, **perplexity: Any
) -> Any:
    manifest, timings = everything(mark)
    if batch:
        timings[5]["latency_of"]["batch"] = batch
    for step in manifest["steps"]:
        if "perplexity" in step["record"]:
            step["record"]["perplexity"] |= perplexity
    manifest["steps"][2]["record"]["parameters"][1] = parameters
    return entry(name, manifest, timings)


def test_the_front_is_what_no_other_beats() -> None:
    points = [(1.0, 5.0), (2.0, 3.0), (2.0, 4.0), (3.0, 3.0), (4.0, 1.0)]
    assert [points[n] for n in front(points)] == [(1.0, 5.0), (2.0, 3.0), (4.0, 1.0)]
    assert front([(1.0, 1.0), (1.0, 1.0)]) == [0, 1]


def test_runs_measured_otherwise_are_listed_but_not_drawn() -> None:
    runs = [changed("a"), changed("b", parameters=1_000_000, after=11.0), changed("c", length=512)]
    text = comparison(runs)
    page = Page(text)
    said = "".join(page.text)
    assert "Perplexity per token on python-docs, heldout, windows of 256 tokens, stride 255, 16,320 tokens" in said
    assert (
        "measured perplexity otherwise, and not drawn with the rest: c (python-docs, heldout, windows of 512 tokens, "
        "stride 255, 16,320 tokens counted once each)"
    ) in said
    assert "Latency of a prompt: batch 1, device cpu, length 256." in said
    assert "measured latency otherwise" not in said
    assert [s["id"] for s in page.of("section")] == ["runs", "pareto", "cuts"]
    assert len([d for d in page.of("div") if d.get("class") == "drawing"]) == 2
    assert all(str(link["href"]).startswith("#") for link in page.of("a")), "no file lies beside a comparison"
    assert "1,000,000" in said and "31.2%" in said
    assert text == comparison([changed("a"), changed("b", parameters=1_000_000, after=11.0), changed("c", length=512)])


def test_latencies_of_other_settings_are_not_on_one_plot() -> None:
    runs = [changed("a", batch=8), changed("b", after=11.0), changed("c", after=12.0)]
    said = "".join(Page(comparison(runs)).text)
    other = "measured latency otherwise, and not drawn with the rest: a (batch 8, device cpu, length 256)"
    assert other in said and "measured perplexity otherwise" not in said
    assert "Latency of a prompt: batch 1, device cpu, length 256." in said
    drawn = comparison([changed("a", batch=8), changed("b", batch=2)])
    assert "b (batch 2, device cpu, length 256)" in drawn
    points = [len(re.findall(r'<g id="pareto-[a-z]*-text_', part)) for part in comparison(runs).split("<svg")[1:]]
    assert points[0] == points[1] + 1, "one run less is drawn beside latency"


def test_names_with_markup_stay_text() -> None:
    page = Page(comparison([changed(SCRIPT, mark=SCRIPT), changed("b")]))
    assert not page.of("script") and not page.of("img")


def output(folder: Path, parameters: int) -> Path:
    manifest, timings = everything()
    manifest["steps"][2]["record"]["parameters"][1] = parameters
    folder.mkdir()
    files.write_json(folder / files.TIMINGS, {"steps": timings})
    files.write_json(folder / files.MANIFEST, manifest | {"files": {}})
    return folder


def test_the_command_draws_one_and_compares_several(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one, two = output(tmp_path / "one", 2_000_000), output(tmp_path / "two", 1_000_000)
    assert cli.run(["report", "one", "-q"]) == 0
    assert (one / "report" / "index.html").is_file()
    assert files.verify(one) == []
    assert cli.run(["report", "one", "two", "--output", "sub/both.html", "--json", "-q"]) == 0
    page = Page((tmp_path / "sub" / "both.html").read_text())
    assert "2 runs compared" in "".join(page.text)
    assert not (two / "report").exists()
    drawn = (tmp_path / "sub" / "both.html").read_bytes()
    assert cli.run(["report", "one", "two", "--output", "sub/both.html", "-q"]) == 0, "a page of ours is drawn again"
    assert (tmp_path / "sub" / "both.html").read_bytes() == drawn
    assert cli.run(["report", "one", "three", "--output", "sub/both.html", "-q"]) == 2
    assert "three: has no prune.json" in capsys.readouterr().err
    assert cli.run(["report", str(tmp_path), "-q"]) == 2
    assert "is not an output of prune" in capsys.readouterr().err


def test_a_file_of_somebody_elses_is_replaced_only_when_that_was_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    output(tmp_path / "one", 2_000_000)
    (tmp_path / "mine.html").write_text("mine")
    asked = ["report", "one", "--output", "mine.html", "-q"]
    assert cli.run(asked) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert (tmp_path / "mine.html").read_text() == "mine"
    assert cli.run([*asked, "--overwrite"]) == 0
    assert "1 run compared" in "".join(Page((tmp_path / "mine.html").read_text()).text)
