"""The report: whole, self-contained, the same bytes every time, and deaf to markup in names."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from prune import files
from prune.errors import PruneError
from prune.recipe import apply
from prune.report import write
from prune.report.blocks import Data, Facts
from prune.report.page import as_csv, metrics, report, ticked
from tests.report.sample import everything

SCRIPT = "</svg></title></style><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{7*7}}$x^2$"
CSP = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
SVG = "{http://www.w3.org/2000/svg}"
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """What a browser would find: elements with their attributes, headings, text; and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def drawn() -> dict[str, str]:
    return report(*everything())


@pytest.fixture(scope="module")
def page(drawn: dict[str, str]) -> Page:
    return Page(drawn["index.html"])


def test_what_was_cut_says_how_it_was_made_up_for(page: Page) -> None:
    said = "step 2: 2 linears solved anew, target dense, damping 0.0001 to 0.1; it had to be raised in 1 of them"
    assert said in page.text


def test_every_part_is_there_and_led_to(page: Page) -> None:
    sections = [section["id"] for section in page.of("section")]
    expected = ["result", "cut", "scores", "training", "tasks", "generations", "merge", "synthesis", "speed"]
    assert sections == [*expected, "trust", "loading", "recipe"]
    assert [link["href"] for link in page.of("a") if link["href"] in {f"#{name}" for name in sections}][-12:] == [
        f"#{name}" for name in sections
    ]


def test_what_is_absent_leaves_no_trace() -> None:
    manifest = {"model": {"source": "m"}, "versions": {}, "recipe": {"model": "m", "steps": []}, "steps": []}
    found = report(manifest, [])
    assert set(found) == {"index.html", "metrics.json"}
    assert [section["id"] for section in Page(found["index.html"]).of("section")] == ["recipe"]


def test_it_is_one_file_that_asks_for_nothing(drawn: dict[str, str], page: Page) -> None:
    text = drawn["index.html"]
    assert len(text.encode()) < 1.5e6
    assert [m["content"] for m in page.of("meta") if m.get("http-equiv")] == [CSP]
    assert not page.of("script") and not page.of("iframe") and not page.of("object")
    sources = [
        value for _, attributes in page.elements for name, value in attributes.items() if name in ("src", "xlink:href")
    ]
    assert all(str(value).startswith(("data:image/png;base64,", "#")) for value in sources)
    beside = [str(link["href"]) for link in page.of("a") if not str(link["href"]).startswith("#")]
    assert set(beside) == {name for name in drawn if name.endswith((".csv", ".svg"))}
    assert not re.search(r"url\((?!#)", text)
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]


def test_the_same_run_gives_the_same_bytes_also_read_back_from_json(drawn: dict[str, str]) -> None:
    manifest, timings = everything()
    text = json.dumps([manifest, timings], sort_keys=True)
    assert report(*json.loads(text)) == drawn


def test_what_stands_between_backticks_is_code_and_escaped() -> None:
    assert ticked("say `a < b` <b>") == "say <code>a &lt; b</code> &lt;b&gt;"
    assert ticked("a lone ` is one") == "a lone ` is one"
    assert ticked("`x` and ` <i>") == "<code>x</code> and ` &lt;i&gt;"


def test_each_export_is_one_row(page: Page) -> None:
    said = " ".join(" ".join(page.text).split())
    assert "export in step written as size largest difference from PyTorch" in said
    assert "8 onnx 400 B in 1 file 1.0e-06 of the largest logit, at row 0" in said
    assert "its code" not in said, "where a rule on runtimes was read is no matter of the reader's"


def test_no_id_is_used_twice(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_markup_in_every_field_is_text(page: Page) -> None:
    plain, marked = page, report(*everything(SCRIPT))
    found = Page(marked["index.html"])
    assert not found.of("script") and not found.of("img")
    assert [tag for tag, _ in found.elements if tag not in ("path", "g", "use", "text", "tspan")] == [
        tag for tag, _ in plain.elements if tag not in ("path", "g", "use", "text", "tspan")
    ]
    assert "{{7*7}}" in "".join(found.text)
    for name, text in marked.items():
        assert re.fullmatch(r"[a-z0-9_.-]+", name), name
        if name.endswith(".svg"):
            assert not [e for e in ET.fromstring(text.encode()).iter() if str(e.tag).endswith(("script", "img"))]


def test_every_svg_is_a_document_of_its_own_and_every_picture_in_it_a_png(drawn: dict[str, str]) -> None:
    for name, text in drawn.items():
        if name.endswith(".svg"):
            root = ET.fromstring(text.encode())
            assert root.get("viewBox")
            for image in root.iter("{http://www.w3.org/2000/svg}image"):
                data = str(image.get("{http://www.w3.org/1999/xlink}href")).split(",", 1)[1]
                assert base64.b64decode(data).startswith(b"\x89PNG")


def test_beside_each_plot_stand_its_numbers(drawn: dict[str, str]) -> None:
    for name in drawn:
        if name.endswith(".svg"):
            rows = list(csv.reader(io.StringIO(drawn[name.replace(".svg", ".csv")])))
            assert len(rows) > 1
            assert {len(row) for row in rows} == {len(rows[0])}
    kept = list(csv.DictReader(io.StringIO(drawn["architecture.csv"])))
    assert [row["layer"] for row in kept if row["dropped"] == "1"] == ["5"]
    assert [int(row["channels_kept"]) for row in kept] == [224, 256, 160, 128, 192, 0, 208, 256]


def paths(svg: str, colour: str) -> list[list[str]]:
    """The points of every path that is drawn in one of the page's colours."""
    drawn = [
        e for e in ET.fromstring(svg.encode()).iter(f"{SVG}path") if f"stroke: var(--{colour}" in e.get("style", "")
    ]
    return [re.findall(r"[ML] [-\d.]+ [-\d.]+", str(e.get("d"))) for e in drawn]


def test_the_cut_is_drawn_into_the_scores(drawn: dict[str, str]) -> None:
    """An edge with two points a layer where bins stand by score; two strokes a removed unit where they do not."""
    kept = [row["kept_share"] for row in csv.DictReader(io.StringIO(drawn["scores-2-heads.csv"]))]
    gone = sum(float(share) == 0 for share in kept)
    assert gone and [len(points) for points in paths(drawn["scores-2-heads.svg"], "cut")] == [4 * gone]
    (edge,) = paths(drawn["scores-2-channels.svg"], "cut")
    places = [float(point.split()[1]) for point in edge]
    rows = list(csv.DictReader(io.StringIO(drawn["scores-2-channels.csv"])))
    shares = [sum(1 - float(row["kept_share"]) for row in rows if row["layer"] == str(n)) for n in range(8)]
    for number, other in pairwise(range(8)):
        a, b = (places[min(2 * n, len(places) - 1)] for n in (number, other))
        assert (a < b) == (shares[number] < shares[other])


def test_each_subjects_bars_and_numbers_are_its_own(drawn: dict[str, str]) -> None:
    scores = everything()[0]["steps"][5]["record"]["tasks"]
    listed = list(csv.DictReader(io.StringIO(drawn["kmmlu-stem.csv"])))
    assert len(listed) == 11
    for row in listed:
        for side in ("before", "after"):
            own = scores[side]["kmmlu"]["subjects"][row["subject"]]
            assert float(row[side]) == own["correct"] / own["questions"]
        assert float(row["majority"]) == 0.305
    assert [float(row["after"]) for row in listed] == sorted(float(row["after"]) for row in listed)
    lengths = {side: bars(drawn["kmmlu-stem.svg"], side) for side in ("before", "after")}
    scale = lengths["before"][0] / float(listed[0]["before"])
    for side, found in lengths.items():
        assert found[: len(listed)] == pytest.approx([scale * float(row[side]) for row in listed], rel=1e-3)
    assert any(len(points) == 2 for points in paths(drawn["kmmlu-stem.svg"], "cut")), "the majority's line"


def bars(svg: str, colour: str) -> list[float]:
    """The widths of the filled bars of a colour, in their order."""
    drawn = [e for e in ET.fromstring(svg.encode()).iter(f"{SVG}path") if f"fill: var(--{colour}" in e.get("style", "")]
    places = [[float(x) for x in re.findall(r"[ML] ([-\d.]+) ", str(e.get("d")))] for e in drawn]
    return [max(own) - min(own) for own in places]


def test_the_curve_of_training_is_the_recorded_one(drawn: dict[str, str]) -> None:
    curve = everything()[0]["steps"][4]["record"]["training"]["curve"]
    rows = list(csv.DictReader(io.StringIO(drawn["training-5.csv"])))
    assert [(int(row["step"]), float(row["loss"])) for row in rows] == [(one["step"], one["loss"]) for one in curve]
    held = {int(row["step"]): float(row["held_out"]) for row in rows if row["held_out"]}
    assert held == {one["step"]: one["held_out"] for one in curve if one["held_out"] is not None}


def test_what_another_runtime_took_is_labelled_so(drawn: dict[str, str]) -> None:
    rows = list(csv.DictReader(io.StringIO(drawn["speed.csv"])))
    assert [row["measure"] for row in rows] == ["prefill", "decode", "memory", "prefill, ONNX Runtime"]


def test_a_spreadsheet_takes_no_name_for_a_formula() -> None:
    assert as_csv(Data(("a", "b"), [("=1+1", -2.5), ("plain", None)])) == "a,b\n'=1+1,-2.5\nplain,\n"


def test_the_numbers_for_machines_are_those_of_the_run(drawn: dict[str, str]) -> None:
    manifest, timings = everything()
    found = json.loads(drawn["metrics.json"])
    assert found == json.loads(json.dumps(metrics(Facts(manifest, timings))))
    assert found["changes"]["perplexity"]["after"] == 9.4
    assert found["tasks"]["after"]["kmmlu"]["majority"] == 0.305
    assert found["proof"] == {"max_relative_difference": 4.1e-7, "tolerance": 1e-4}


def test_colours_are_the_pages_own(drawn: dict[str, str]) -> None:
    css, svg = drawn["index.html"].split("</style>", 1)[0], drawn["perplexity.svg"]
    named = set(re.findall(r"var\(--([a-z]+)", svg))
    assert named and all(css.count(f"--{name}:") == (1 if name == "font" else 2) for name in named)
    assert not re.search(r"(fill|stroke): #", svg)


def test_a_large_model_keeps_the_page_small() -> None:
    """80 layers of 64 heads in 8 groups, 28672 channels."""
    layers = list(range(80))
    every = {"width": 8192, "head_dim": 128, "heads": [64] * 80, "kv_heads": [8] * 80, "channels": [28672] * 80}
    every |= {"experts": [0] * 80, "expert_channels": [0] * 80}
    cut = every | {"heads": [48] * 80, "kv_heads": [6] * 80, "channels": [21504] * 80}
    plan = {f"layers.{n}.heads": [0, 1, 2, 3, 4, 6] for n in layers} | {
        f"layers.{n}.channels": list(range(21504)) for n in layers
    }
    heads = {"order": "unit", "layers": layers, "units": [8] * 80, "mean": [[1.5] * 8] * 80}
    heads["kept"] = [[1, 1, 1, 1, 1, 0, 1, 0]] * 80
    channels = {"order": "score", "layers": layers, "units": [28672] * 80, "mean": [[b + 1.0 for b in range(51)]] * 80}
    channels["kept"] = [[float(b > 12) for b in range(51)]] * 80
    record = {
        "shape": [every, cut],
        "plan": plan,
        "scores": {"heads": heads, "channels": channels},
        "removed": {"heads": "x"},
    }
    manifest, _ = everything()
    manifest["steps"] = [{"word": "remove", "options": {}, "record": record, "warnings": []}]
    found = report(manifest, [{}])
    assert sum(len(text.encode()) for text in found.values()) < 1.5e6
    assert found["index.html"].count('class="layer"') == 80


# One real run.


@pytest.fixture(scope="module")
def out(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "out"
    remove = {"what": ["heads", "channels"], "ratio": 0.5, "criterion": "magnitude"}
    apply({"model": str(llama_folder), "output": str(folder), "steps": [{"remove": remove}]})
    return folder


def test_a_run_ends_with_a_report_and_verify_knows_it(out: Path) -> None:
    assert {"report/index.html", "report/metrics.json", "report/scores-1-heads.svg"} <= set(files.names(out))
    assert not [name for name in files.manifest(out)["files"] if name.startswith("report/")]
    assert files.verify(out) == []
    assert files.unlisted(out) == []


def test_drawn_again_it_is_the_same_and_what_was_spoilt_is_mended(out: Path) -> None:
    before = {name: (out / name).read_bytes() for name in files.names(out)}
    (out / "report" / "index.html").write_text("spoilt")
    assert files.verify(out) == ["report/index.html: changed"]
    write.again(out)
    assert {name: (out / name).read_bytes() for name in files.names(out)} == before
    assert files.names(out.parent) == [f"out/{name}" for name in files.names(out)]


def test_an_output_of_before_there_were_reports_gets_one(out: Path, tmp_path: Path) -> None:
    old = shutil.copytree(out, tmp_path / "old")
    shutil.rmtree(old / "report")
    files.write_json(old / files.TIMINGS, {"steps": files.read_json(old / files.TIMINGS)["steps"]})
    assert files.verify(old) == []
    write.again(old)
    assert (old / "report" / "index.html").read_bytes() == (out / "report" / "index.html").read_bytes()
    assert files.verify(old) == []


def test_somebodys_own_file_in_the_reports_place_is_not_lost(out: Path, tmp_path: Path) -> None:
    own = shutil.copytree(out, tmp_path / "own")
    (own / "report" / "notes.txt").write_text("mine")
    with pytest.raises(PruneError, match=r"notes\.txt"):
        write.again(own)
    assert (own / "report" / "notes.txt").read_text() == "mine"
    with pytest.raises(PruneError, match=r"notes\.txt"):
        files.refuse_occupied(own, overwrite=True)
