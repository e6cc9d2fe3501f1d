"""The page in headless Chromium: nothing of others' text runs, nothing is loaded, and everybody can read it."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hostile import hostile, hostile_manifest, trace, write_run

from browsing import chromium
from outrider.report.page import write_page
from outrider.report.sources import read_source

ROOT = Path(__file__).parents[3]
CONTRAST = """
const canvas = new OffscreenCanvas(1, 1), pen = canvas.getContext('2d', {willReadFrequently: true});
function channels(colour) {
  pen.clearRect(0, 0, 1, 1); pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1);
  return [...pen.getImageData(0, 0, 1, 1).data];
}
function light(colour) {
  const [r, g, b] = channels(colour).map((c) => c / 255)
    .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function behind(element) {
  for (let one = element; one; one = one.parentElement) {
    const colour = getComputedStyle(one).backgroundColor;
    if (channels(colour)[3] === 255) return colour;
  }
  return 'white';
}
const low = {};
for (const one of document.querySelectorAll('main *, header *, footer *')) {
  if (!one.checkVisibility() || ![...one.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
  const style = getComputedStyle(one), colour = one.closest('svg') ? style.fill : style.color;
  const [dark, bright] = [light(colour), light(behind(one))].sort((a, b) => a - b);
  const ratio = (bright + 0.05) / (dark + 0.05);
  if (ratio < 4.5) low[`${one.tagName} ${colour} on ${behind(one)}`] = ratio;
}
return low;
"""


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with chromium() as driver:
        yield driver


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("report")
    filed = read_source(ROOT / "docs" / "results" / "quick.json").bench
    assert filed is not None
    few = replace(filed, rows=filed.rows[:20] + filed.rows[-6:])
    runs = [write_run(place / name, run, hostile_manifest()) for name, run in (("a", hostile(few)), ("b", few))]
    (runs[0] / "traces.jsonl").write_text(trace().to_json() + "\n", encoding="utf-8")
    write_page([read_source(run) for run in runs], place / "report.html")
    return place / "report.html"


@pytest.fixture
def page(driver: Any, file: Path) -> Any:
    driver.get_log("performance")
    driver.get(file.as_uri())
    return driver


def look(driver: Any, width: int, scheme: str) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def test_nothing_runs_and_nothing_is_loaded(page: Any) -> None:
    assert page.title.startswith("Outrider report: ")
    assert page.execute_script("return document.querySelectorAll('img, iframe, [onmouseover]').length") == 0
    assert page.execute_script("return document.querySelectorAll('script').length") == 2  # the ribbon's
    said = page.execute_script("return document.querySelector('.outrider-ribbons').textContent")
    assert "<img src=x onerror=" in said
    assert page.execute_script("return document.querySelectorAll('.outrider-ribbons .token').length") >= 2
    assert page.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = {one["params"]["request"]["url"] for one in events if one["method"] == "Network.requestWillBeSent"}
    assert {address for address in asked if not address.startswith("data:")} == {page.current_url}
    assert page.execute_script("return performance.getEntriesByType('resource').length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_everybody_can_read_it(page: Any, scheme: str, width: int) -> None:
    look(page, width, scheme)
    page.execute_script("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    assert page.execute_script(CONTRAST) == {}
    paper = page.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(13, 17, 23)"}[scheme]
    drawn = "return [...document.querySelectorAll('svg')].filter((one) => one.checkVisibility()).length"
    assert page.execute_script(drawn) == page.execute_script("return document.querySelectorAll('figure').length") > 2
    sizes = page.execute_script(
        "return [...document.querySelectorAll('svg')].filter((one) => one.checkVisibility())"
        ".map((one) => 11 * one.getBoundingClientRect().width / one.viewBox.baseVal.width)"
    )
    assert min(sizes) >= 10, "the smallest text of a figure in pixels"


def test_a_screen_reader_finds_its_way(page: Any) -> None:
    look(page, 1400, "light")
    nodes = page.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    named = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node.get("ignored") and "role" in node
    ]
    for role in ("main", "banner", "contentinfo", "navigation"):
        assert role in [one for one, _ in named]
    pictures = [name for role, name in named if role in ("img", "image")]
    assert len(pictures) >= page.execute_script("return document.querySelectorAll('figure').length") > 2
    assert all(pictures)
    assert all(name for role, name in named if role in ("table", "region", "navigation", "link", "heading"))


def test_a_keyboard_reaches_everything(page: Any) -> None:
    from selenium.webdriver import ActionChains, Keys

    look(page, 1400, "light")
    ActionChains(page, duration=0).send_keys(Keys.TAB).perform()
    focused = "return document.activeElement"
    skip = page.execute_script(focused)
    assert skip.text == "Skip to the answer"
    assert page.execute_script("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    ActionChains(page, duration=0).send_keys(Keys.ENTER).perform()
    assert page.execute_script(focused).get_attribute("id") == "main"
    page.execute_script("document.querySelector('summary').focus()")
    ActionChains(page, duration=0).send_keys(Keys.ENTER).perform()
    assert page.execute_script("return document.querySelector('details').open")


def test_it_can_be_read_on_paper(page: Any) -> None:
    look(page, 740, "dark")
    dark = {"name": "prefers-color-scheme", "value": "dark"}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": [dark]})
    try:
        assert page.execute_script("return getComputedStyle(document.querySelector('h1')).color") == "rgb(0, 0, 0)"
        shown = "return [...document.querySelectorAll('nav, .skip, .narrow')].filter((one) => one.checkVisibility())"
        assert page.execute_script(shown) == []
        outside = "return [...document.querySelectorAll('svg, h1, p')].filter((one) => one.checkVisibility()"
        outside += " && one.getBoundingClientRect().right > innerWidth).length"
        assert page.execute_script(outside) == 0
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
