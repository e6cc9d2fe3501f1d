"""The files of the served page: they are in the package, refer to nothing outside it, and their colours can be read."""

import re
from importlib import resources
from itertools import product

import pytest

PAGE = resources.files("outrider.serve") / "page"
RIBBON = resources.files("outrider.traces") / "ribbon"
FILES = {file.name: file for folder in (PAGE, RIBBON) for file in folder.iterdir()}
NAMES = sorted(FILES)
SHEETS = [name for name in NAMES if name.endswith(".css")]
SCRIPTS = [name for name in NAMES if name.endswith(".js")]
PALETTE = re.compile(r"--([\w-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\);")
TEXT_ON = [
    *product(("ink", "muted", "draft", "bonus", "rejected", "forced"), ("paper", "sheet")),
    *product(("ink",), ("draft-tint", "bonus-tint", "forced-tint", "plain-tint")),
    *product(("paper",), ("ink",)),
]
"""Colours of text and what lies behind it: 4.5 to 1 (WCAG 2.2, 1.4.3)."""
MARKS_ON = list(
    product(("draft", "bonus", "forced", "plain", "rejected", "edge", "focus", "verify"), ("paper", "sheet"))
)
"""Colours of marks and edges and what lies behind them: 3 to 1 (WCAG 2.2, 1.4.11)."""


def read(name: str) -> str:
    return FILES[name].read_text(encoding="utf-8")


def palette(theme: int) -> dict[str, str]:
    """The colours of a theme: 0 light, 1 dark."""
    return {name: colours[theme] for name, *colours in PALETTE.findall(read("ribbon.css"))}


def luminance(colour: str) -> float:
    """Relative luminance, as WCAG 2.2 defines it."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_the_package_holds_the_page() -> None:
    assert {"index.html", "page.css", "ribbon.css", "page.js", "ribbon.js", "chat.js", "race.js"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_fetched_from_elsewhere(name: str) -> None:
    text = read(name).replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|@import|url\(|//cdn", text)
    quoted = re.findall(r"""(?:from|import) "([^"]+)"|(?:src|href)="([^"#]+)\"""", text)
    places = {(one or other).rsplit("/", 1)[-1]: one or other for one, other in quoted}
    assert set(places) <= set(NAMES)
    assert all(
        ("ribbon/" in place) == (FILES[one] in set(RIBBON.iterdir())) or "./" in place for one, place in places.items()
    )


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_make_no_markup_from_text(name: str) -> None:
    sinks = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|srcdoc|setHTML"
    assert not re.search(sinks, read(name))
    assert len(read(name).splitlines()) <= 350


def test_the_policy_allows_no_inline_script_or_style() -> None:
    page = read("index.html")
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == "'self'"
    assert not re.search(r"<style|style=|\son\w+=|<script(?! type=\"module\" src=)", page)


@pytest.mark.parametrize(
    ("one", "other", "ratio"), [("#000000", "#ffffff", 21.0), ("#767676", "#ffffff", 4.54), ("#aaaaaa", "#aaaaaa", 1.0)]
)
def test_contrast_is_computed_as_published(one: str, other: str, ratio: float) -> None:
    assert contrast(one, other) == pytest.approx(ratio, abs=0.005)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_and_marks_stand_out(theme: int) -> None:
    colours = palette(theme)
    weak = [
        f"{front} on {behind}: {contrast(colours[front], colours[behind]):.2f}"
        for least, pairs in ((4.5, TEXT_ON), (3.0, MARKS_ON))
        for front, behind in pairs
        if contrast(colours[front], colours[behind]) < least
    ]
    assert not weak


def test_every_colour_that_is_used_is_in_the_palette() -> None:
    used = {name for sheet in SHEETS for name in re.findall(r"var\(--([\w-]+)\)", read(sheet))}
    local = {"serif", "mono", "up", "down", "ribbon", "height", "tick"}
    assert used - local == set(palette(0))
    assert not [sheet for sheet in SHEETS if re.search(r"#[0-9a-f]{3,8}\b", PALETTE.sub("", read(sheet)))]
