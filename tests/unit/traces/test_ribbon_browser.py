"""The ribbon as a file in headless Chromium: what a reader sees and reaches, with the numbers of the trace."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_ribbon_html import HOSTILE, step, trace

from browsing import Keys, Page
from outrider.traces.html import fragment, page
from outrider.traces.trace import Trace

TRACES = [
    trace("none", tuple(step(number, (), text, 5.0) for number, text in enumerate(("The", " sky", " is", " blue"), 1))),
    trace("ngram", (step(1, (), "The"), step(2, (" sky", " is"), " blue", 12.0))),
    trace("ngram", (step(1, ("def", " f"), "():\n    pass"),), category="code", prompt_id="code-1", prompt="Write f"),
]


class Shown(Page):
    """A page from traces."""

    def __init__(self, driver: Any, directory: Path) -> None:
        super().__init__(driver)
        self.directory = directory

    def open(self, text: str) -> None:
        self.requests()
        (self.directory / "shown.html").write_text(text, encoding="utf-8")
        self.driver.get((self.directory / "shown.html").as_uri())

    def choose(self, select: int, value: str) -> None:
        self.js(
            """
            const select = document.querySelectorAll("select")[arguments[0]];
            select.value = [...select.options].find((one) => one.textContent.includes(arguments[1])).value;
            select.dispatchEvent(new Event("change"));
            """,
            select,
            value,
        )

    def options(self, select: int) -> list[str]:
        found: list[str] = self.js(
            "return [...document.querySelectorAll('select')[arguments[0]].options].map((one) => one.textContent)",
            select,
        )
        return found

    def tokens(self) -> list[list[str]]:
        found: list[list[str]] = self.js(
            "return [...document.querySelectorAll('acceptance-ribbon .ribbon-text .token')]"
            ".map((one) => [one.textContent, one.classList[1]])"
        )
        return found


@pytest.fixture
def shown(driver: Any, tmp_path: Path) -> Iterator[Shown]:
    shown = Shown(driver, tmp_path)
    yield shown
    assert shown.log() == []
    assert [one for one in shown.requests() if not one.startswith("file:")] == []
    driver.get("about:blank")


def test_prompt_and_method_are_chosen_by_ordinary_controls(shown: Shown) -> None:
    shown.open(page(TRACES, "A run"))
    assert shown.options(0) == ["chat \u00b7 Why?", "code \u00b7 Write f"]
    assert shown.options(1) == ["ngram", "none"]
    shown.choose(1, "none")
    assert shown.tokens() == [["The", "plain"], [" sky", "plain"], [" is", "plain"], [" blue", "plain"]]
    shown.choose(1, "ngram")
    assert shown.tokens() == [["The", "plain"], [" sky", "draft"], [" is", "draft"], [" blue", "bonus"]]
    figures = shown.js("return [...document.querySelectorAll('.figures dd')].map((one) => one.textContent)")
    # 4 tokens in 2 steps; 21 ms, and 20 ms plainly; 2 of 3 nodes kept
    assert figures == ["2.00", "190", "0.95\u00d7", "67 %"]
    shown.choose(0, "code")
    assert shown.options(1) == ["ngram"]
    assert shown.text(".shelf-said") == "Write f"
    assert "code" in shown.js("return [...document.querySelector('acceptance-ribbon').classList]")
    assert "plain" not in shown.text(".shelf-legend")  # none of this answer's tokens is


def test_a_token_shows_its_step(shown: Shown) -> None:
    shown.open(page(TRACES, "A run"))
    shown.choose(1, "ngram")
    shown.hover(shown.all("acceptance-ribbon .token")[2])
    assert shown.text(".card h3") == "Step 2 of 2"
    assert shown.text(".card-headline") == "3 tokens in 12.0 ms \u00b7 kept 2 of 3"
    assert shown.text(".card-verdict").startswith("\u25b2 won 3.00 ms")
    rows = shown.js(
        "return [...document.querySelectorAll('.tree tbody tr')]"
        ".map((row) => [...row.children].map((one) => one.textContent))"
    )
    assert rows == [
        ["The", "", " before"],
        ["\u00b7sky", "0.75", "\u2713 accepted"],
        ["\u00b7is", "0.75", "\u2713 accepted"],
        ["wrong", "0.75", "\u2715 rejected"],
        ["\u00b7blue", "0.50", "+ bonus"],
    ]
    assert shown.text(".choices li") == "\u00b7blue 0.50"
    shown.js("document.querySelector('acceptance-ribbon .token').focus()")
    assert shown.text(".card h3") == "Step 1 of 2"
    shown.press(Keys.ARROW_DOWN, Keys.ARROW_RIGHT)
    assert shown.text(".card h3") == "Step 2 of 2"
    assert shown.js("return document.activeElement.getAttribute('aria-label')") == "\u00b7is, draft, accepted, step 2"
    shown.press(Keys.ESCAPE)
    assert shown.js("return document.querySelector('.card').hidden")


def test_the_parts_of_a_method_are_told_apart(shown: Shown) -> None:
    first, second = step(1, ("a",), "b"), step(2, ("c",), "d")
    steps = tuple(
        replace(one, draft=replace(one.draft, part=part)) for one, part in ((first, "eagle3"), (second, "<look-up>"))
    )
    shown.open(page([trace("hybrid", steps)], "A run"))
    other = shown.js("return [...document.querySelectorAll('.ribbon-text .token.other')].map((one) => one.textContent)")
    assert other == ["c"]
    patterns = shown.js(
        "return [...document.querySelectorAll('.ribbon-text .token.draft')]"
        ".map((one) => getComputedStyle(one).backgroundImage)"
    )
    assert len(set(patterns)) == 2
    legend = shown.js("return [...document.querySelectorAll('.shelf-legend li')].map((one) => one.textContent)")
    assert legend[:2] == ["draft by eagle3, accepted by the target", "draft by <look-up>, accepted too"]
    shown.hover(shown.all("acceptance-ribbon .token")[2])
    assert "Draft tree by <look-up>" in shown.text(".tree-block")
    label = shown.js("return document.querySelectorAll('.token[role=option]')[2].getAttribute('aria-label')")
    assert label == "c, draft, accepted (<look-up>), step 2"


def test_every_control_has_a_name(shown: Shown) -> None:
    shown.open(page(TRACES, "A run"))
    names = shown.js("return [...document.querySelectorAll('select')].map((one) => one.labels[0].textContent)")
    assert names == ["Prompt", "Method"]
    assert shown.js("return document.querySelectorAll('acceptance-ribbon .token[tabindex=\"0\"]').length") == 1
    assert shown.js("return document.querySelector('[role=listbox]').getAttribute('aria-label')")


def test_hostile_text_does_nothing(shown: Shown) -> None:
    text = HOSTILE.replace("hit()", "window.hit = 1")
    shown.open(page([trace(text, (step(1, (text,), text),), category=text, prompt=text)] * 2, text))
    assert shown.js("return [window.hit, document.querySelectorAll('script').length]") == [None, 2]
    written = shown.text("acceptance-ribbon .ribbon-text") + shown.text(".shelf-said") + shown.options(0)[0]
    assert "<script>window.hit" in written
    assert not set(written) & set("\u202e\x1b\x00\u2028")
    shown.hover(shown.all("acceptance-ribbon .token")[0])
    assert shown.js("return document.querySelectorAll('.card script, .card style').length") == 0


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_small_window_in_both_themes(shown: Shown, theme: str) -> None:
    with shown.sized(400, theme=theme):
        shown.open(page([*TRACES, trace("a" * 300, (step(1, ("x" * 900,), "y"),), prompt="p" * 1900)], "t" * 300))
        shown.hover(shown.all("acceptance-ribbon .token")[1])
        assert shown.js("return document.documentElement.scrollWidth <= innerWidth")
        ink = shown.js("return getComputedStyle(document.querySelector('.card-headline')).color")
        assert shown.js("return document.querySelector('.shelf-said').tabIndex") == -1  # a short prompt
        shown.choose(0, "ppp")
        assert shown.js("return document.querySelector('.shelf-said').tabIndex") == 0
        assert ink == {"light": "rgb(27, 29, 32)", "dark": "rgb(232, 230, 225)"}[theme]


def test_style_and_script_stay_within_the_fragment(shown: Shown) -> None:
    """A notebook or a report holds several fragments beside elements with the same class names."""
    whole = "<!doctype html><html lang=en><body><p class=card>card</p>{}{}<p class=token>token</p></body></html>"
    shown.open(whole.format(fragment(TRACES[:1]), fragment(TRACES[1:2])))
    assert (
        shown.js("return [...document.querySelectorAll('acceptance-ribbon')].map((one) => one.text)")
        == ["The sky is blue"] * 2
    )
    outer = shown.js("return getComputedStyle(document.querySelector('p.card')).borderStyle")
    inner = shown.js("return getComputedStyle(document.querySelector('section .card')).borderStyle")
    assert (outer, inner) == ("none", "solid")
    assert shown.js("return getComputedStyle(document.documentElement).getPropertyValue('--ink')") == ""
    assert shown.js("return [...document.querySelectorAll('.shelf-controls')].map((one) => one.hidden)") == [True, True]


def test_without_scripts_or_on_paper_who_wrote_what_is_still_seen(shown: Shown) -> None:
    """Colour is not the only sign: drafts, bonus and plain tokens have ribbons of other patterns."""
    shown.open(page(TRACES[1:2], "A run"))
    shown.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        patterns = shown.js(
            """
            const style = (by) => getComputedStyle(document.querySelector(`acceptance-ribbon .token.${by}`));
            return ["draft", "bonus", "plain"].map((by) => [style(by).backgroundImage, style(by).printColorAdjust]);
            """
        )
    finally:
        shown.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert len({image for image, _ in patterns}) == 3
    assert {adjust for _, adjust in patterns} == {"exact"}


def test_a_trace_without_steps_is_empty(shown: Shown) -> None:
    shown.open(page([Trace(target="t", method="m")], "Nothing"))
    assert shown.tokens() == []
