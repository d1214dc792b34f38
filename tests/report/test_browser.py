"""The report in a real browser: no complaints, every image there, nothing asked for, nothing wider than the screen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from prune.report.compare import comparison, entry
from prune.report.page import report
from tests.report import browser
from tests.report.sample import everything

SCRIPT = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
SCREENS = [(390, False), (390, True), (1280, False), (1280, True)]
CONTRAST = """
(() => {
  const light = colour => {
    const linear = v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = colour.match(/[\\d.]+/g).map(v => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = light(getComputedStyle(document.querySelector("section")).backgroundColor);
  const ratio = element => {
    const style = getComputedStyle(element);
    const ink = light(element.namespaceURI.endsWith("svg") ? style.fill : style.color);
    return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  };
  return Math.min(...[...document.querySelectorAll("section td, section .prose, figcaption, svg text")].map(ratio));
})()
"""
SMALLEST = """
Math.min(...[...document.querySelectorAll("svg text")].filter(e => e.textContent.trim()).map(e =>
  parseFloat(getComputedStyle(e).fontSize) * Math.hypot(e.getScreenCTM().a, e.getScreenCTM().b)))
"""


@pytest.fixture(scope="module")
def page() -> Iterator[browser.Page]:
    if browser.program() is None:
        pytest.skip("no chromium here (apt-get install chromium)")
    with browser.browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    for name, text in report(*everything()).items():
        (folder / name).write_text(text, encoding="utf-8")
    runs = [entry(name, *everything(uniform=uniform)) for name, uniform in (("one", True), ("two", False))]
    (folder / "comparison.html").write_text(comparison(runs), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", ["index.html", "comparison.html"])
@pytest.mark.parametrize(("width", "dark"), SCREENS)
def test_it_reads_well_on_every_screen(page: browser.Page, drawn: Path, name: str, width: int, dark: bool) -> None:
    page.open(drawn / name, width=width, dark=dark)
    assert page.complaints() == []
    assert [url for url in page.requests() if not url.startswith("data:")] == [(drawn / name).as_uri()]
    assert page.value("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), (
        "it scrolls sideways"
    )
    drawings = "[...document.querySelectorAll('.drawing svg, svg.strip')].map(e => e.getBoundingClientRect())"
    assert page.value(f"{drawings}.length") > (10 if name == "index.html" else 1)
    assert page.value(f"{drawings}.every(box => box.width > 20 && box.height > 8)"), "a drawing has no size"
    assert page.value(CONTRAST) >= 4.5
    assert page.value(SMALLEST) >= 8.5
    bright = page.value("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0] > 128")
    assert bright is not dark


def test_every_image_inside_the_drawings_is_decoded(page: browser.Page, drawn: Path) -> None:
    page.open(drawn / "index.html", width=1280)
    loads = """Promise.all([...document.querySelectorAll("svg image")].map(image => new Promise(done => {
      const one = new Image(); one.onload = () => done(one.naturalWidth); one.onerror = () => done(0);
      one.src = image.getAttribute("xlink:href"); })))"""
    widths = page.call("Runtime.evaluate", expression=loads, awaitPromise=True, returnByValue=True)["result"]["value"]
    assert len(widths) >= 2 and min(widths) > 1


def test_no_markup_of_a_name_is_run(page: browser.Page, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(report(*everything(SCRIPT))["index.html"], encoding="utf-8")
    page.open(tmp_path / "index.html", width=390)
    assert page.complaints() == []
    assert page.value("document.title").startswith("org/tiny<script>")
    assert page.value("document.querySelectorAll('script, img').length") == 0
    assert page.value("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_the_policy_stops_a_script_that_got_in_all_the_same(page: browser.Page, drawn: Path, tmp_path: Path) -> None:
    text = (drawn / "index.html").read_text(encoding="utf-8").replace("</h1>", f"</h1>{SCRIPT}", 1)
    (tmp_path / "index.html").write_text(text, encoding="utf-8")
    page.open(tmp_path / "index.html", width=1280)
    assert page.value("document.title") == "org/tiny: report"
    assert any("Content Security Policy" in complaint for complaint in page.complaints())
