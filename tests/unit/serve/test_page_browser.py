"""The served page in headless Chromium, against scripted answers. One browser; it is skipped where there is none."""

from collections.abc import Iterator
from typing import Any

import pytest
from page_server import FACTS, HOSTILE, TEXT, Server, running

from browsing import Keys, Page

ANSWER = "".join(TEXT)
PLAIN_MS = 10 * len(TEXT)
"""Time of the scripted plain answer."""


class ServedPage(Page):
    """The served page, and what a person does with it."""

    def __init__(self, driver: Any, server: Server) -> None:
        super().__init__(driver)
        self.server = server
        self.address = server.address

    def open(self) -> None:
        self.driver.get(self.address)
        self.wait(lambda: self.js("return 'ready' in document.documentElement.dataset"))

    def say(self, message: str) -> None:
        self.one("#message").send_keys(message, Keys.ENTER)

    def ask(self, message: str) -> None:
        """Say something and wait for the whole answer."""
        self.say(message)
        self.wait(lambda: self.js("return document.querySelector('.turn:last-child .turn-foot').childElementCount"))


@pytest.fixture
def page(driver: Any) -> Iterator[ServedPage]:
    with running() as server:
        page = ServedPage(driver, server)
        page.open()
        yield page
        assert page.log() == []
        driver.get("about:blank")


def test_an_answer_streams_and_every_token_shows_who_wrote_it(page: ServedPage) -> None:
    assert FACTS["target"] in page.text("#facts")
    page.ask("Why is the sky blue?")
    tokens = page.js(
        "return [...document.querySelectorAll('.turn .token')].map((t) => [t.textContent, t.classList[1]])"
    )
    assert "".join(text for text, _ in tokens) == ANSWER
    # the first scripted steps accept 4, 0 and 2 tokens, and each adds one
    assert [by for _, by in tokens[:9]] == ["draft"] * 4 + ["bonus", "bonus"] + ["draft"] * 2 + ["bonus"]
    assert len(page.all(".turn .token.first")) == len(page.all(".turn .step")) == len(page.all(".turn .column"))
    assert (len(TEXT), len(page.all(".turn .step"))) == (50, 16)
    assert page.text(".turn .tau dd") == "3.13"
    (request,) = page.server.asked
    assert request["stream"]
    assert request["return_steps"]
    assert request["outrider_num_nodes"] == FACTS["num_nodes"]
    assert "outrider_method" not in request
    page.ask("And at night?")
    roles = [message["role"] for message in page.server.asked[1]["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert page.server.asked[1]["messages"][1]["content"] == ANSWER


def test_a_token_opens_the_card_of_its_step(page: ServedPage) -> None:
    page.ask("Show a tree")
    page.hover(page.all(".turn .token")[1])
    assert page.text(".card h3") == "Step 1 of 16"
    assert page.text(".card-headline") == "5 tokens in 18.0 ms \u00b7 kept 4 of 9"
    outcomes = page.js("return [...document.querySelectorAll('.tree tbody tr')].map((row) => row.className)")
    assert outcomes == ["root", "rejected", "unread", "rejected", *["accepted"] * 4, "rejected", "unread", "bonus"]
    assert page.text(".tree tbody tr:nth-child(5) .prob") == "0.90"
    assert page.text(".tree tbody tr:nth-child(6) .prob") == ""  # null: not known
    spent = page.js("return [...document.querySelectorAll('.times dt')].map((name) => name.textContent)")
    assert spent == ["propose", "verify", "accept", "commit", "host"]
    page.hover(page.all(".turn .column")[1])
    assert page.text(".card h3") == "Step 2 of 16"
    page.all(".turn .token")[7].click()
    assert page.js("return document.activeElement.dataset.token") == "7"
    assert page.text(".card h3") == "Step 3 of 16"
    page.hover(page.all(".turn .token")[1])  # the click holds the step until the next one
    assert page.text(".card h3") == "Step 3 of 16"
    page.all(".turn .token")[7].click()
    page.hover(page.all(".turn .token")[1])
    assert page.text(".card h3") == "Step 1 of 16"


def test_the_keyboard_reaches_everything(page: ServedPage) -> None:
    page.ask("Show a tree")
    stops = page.js("return document.querySelectorAll('.turn .token[tabindex=\"0\"]').length")
    assert stops == 1
    page.js("document.querySelector('.turn .token[tabindex=\"0\"]').focus({focusVisible: true})")

    def at() -> tuple[str, str]:
        return page.js("return document.activeElement.dataset.token"), page.text(".card h3")

    assert at() == ("0", "Step 1 of 16")
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert at() == ("1", "Step 1 of 16")
    page.press(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    assert at() == ("6", "Step 3 of 16")
    page.press(Keys.ARROW_UP)
    assert at() == ("5", "Step 2 of 16")
    page.press(Keys.END)
    assert at()[0] == str(len(TEXT) - 1)
    page.press(Keys.HOME, Keys.ENTER)
    assert page.js("return document.activeElement.className") == "card"
    page.press(Keys.ESCAPE)
    assert page.js("return document.querySelector('.turn .card').hidden")
    assert page.js("return document.activeElement.dataset.token") == "0"
    label = page.js("return document.activeElement.getAttribute('aria-label')")
    assert label == "Sunlight, draft, accepted, step 1"
    assert page.text("#status").startswith(f"Answer of {len(TEXT)} tokens: ")
    page.js("document.querySelector('#tab-chat').focus()")
    page.press(Keys.ARROW_RIGHT)
    assert page.one("#race").is_displayed()
    assert not page.one("#chat").is_displayed()


def test_hostile_output_does_nothing(page: ServedPage) -> None:
    before = page.js("return document.querySelectorAll('script, style, img, iframe').length")
    page.ask("Be hostile")
    assert page.js("return document.querySelectorAll('script, style, img, iframe').length") == before
    assert page.js("return [window.hit, location.href]") == [None, page.address]
    shown = page.js("return document.querySelector('.turn .ribbon-text').textContent")
    assert HOSTILE[0] in shown
    assert HOSTILE[1] in shown
    assert "\\u{202e}right to left\\u{2066}" in shown
    assert "\u241b[31mred\u241b[0m\u2400\u2407\u240d\u2421\\u{9b}" in shown
    assert "\ufffd half \ufffd" in shown
    assert not set(shown) & set("\u202e\u2066\x1b\x00\x07\r\x7f\x9b\u200b\u200f\ufeff\u2028\u2029")
    for token in page.all(".turn .token")[:6]:
        page.hover(token)
        assert page.js("return document.querySelectorAll('.tree script, .tree img, .tree iframe').length") == 0
    page.ask("A long one")
    assert page.js("return document.querySelector('.turn:last-child .ribbon-text').textContent.length") == 100_004
    assert page.js("return document.documentElement.scrollWidth <= innerWidth")
    # the next turn sends the hostile text back as well-formed Unicode
    assert "\ufffd half \ufffd" in page.server.asked[1]["messages"][1]["content"]
    page.ask("refused please")
    assert page.text(".problem") == "<b>the queue is full</b>; try again in 2 seconds"
    assert [line for line in page.log() if "503" not in line] == []  # the browser itself notes the status


def test_a_stopped_answer_keeps_what_was_written(page: ServedPage) -> None:
    page.say("slow please")
    page.wait(lambda: len(page.all(".turn .token")) > 5)
    assert page.js("return document.querySelector('acceptance-ribbon').getAttribute('aria-busy')") == "true"
    page.one(".composer .stop").click()
    page.wait(lambda: page.text(".turn .ended") == "stopped")
    written = page.text(".turn .ribbon-text")
    assert ANSWER.startswith(written)
    assert 0 < len(written) < len(ANSWER)
    page.wait(lambda: page.server.left)
    page.ask("go on")
    assert page.server.asked[1]["messages"][1]["content"] == written


def test_a_race_shows_both_runs_in_proportion(page: ServedPage) -> None:
    page.one("#tab-race").click()
    page.js("document.querySelector('#race-prompt').value = 'Why is the sky blue?'")
    page.one(".race-form button").click()
    page.wait(lambda: page.one(".race-stage").is_displayed())
    methods = [request.get("outrider_method", FACTS["method"]) for request in page.server.asked]
    assert methods == ["hybrid", "none", "hybrid", "none"]  # the first two are the warm-up
    raced = [{k: v for k, v in request.items() if not k.startswith("outrider_")} for request in page.server.asked[2:]]
    assert raced[0] == raced[1]
    fast = page.js("return document.querySelector('.lane').tally.totalMs")
    assert page.text(".race-result strong").startswith(f"{PLAIN_MS / fast:.2f}\u00d7: ")
    assert page.text(".race-result .equal") == f"\u2713 The texts are equal: {len(TEXT)} tokens."
    widths = page.js(
        "return [...document.querySelectorAll('.tracks .strip')].map((s) => s.getBoundingClientRect().width)"
    )
    assert widths[0] / widths[1] == pytest.approx(fast / PLAIN_MS, rel=0.01)
    # at 100 ms, plain decoding has written ten tokens of 10 ms; steps of 18, 14, 16, 15 and 17 ms have ended
    page.js(
        "const s = document.querySelector('#scrub'); s.step = 1; s.value = 100; s.dispatchEvent(new Event('input'))"
    )
    shown = page.js(
        """
        const seen = (lane) => lane.querySelectorAll(".step:not(.to-come)").length;
        return [...document.querySelectorAll(".lane")].map(seen);
        """
    )
    assert shown == [6, 10]
    assert page.text(".gain dd") == f"{PLAIN_MS / fast:.2f}\u00d7"


def test_a_race_says_when_texts_differ(page: ServedPage) -> None:
    page.one("#tab-race").click()
    page.js("document.querySelector('#race-prompt').value = 'This one differs'")
    page.one(".race-form button").click()
    page.wait(lambda: page.one(".race-stage").is_displayed())
    assert (
        page.text(".race-result .differ")
        == f"\u2715 The texts differ from character {len(ANSWER[: -len(TEXT[-1])]) + 1} on."
    )


def test_method_and_budget_are_sent_and_the_gain_is_measured(page: ServedPage) -> None:
    page.js(
        """
        const nodes = document.querySelector("[name=nodes]");
        nodes.value = 3;
        nodes.dispatchEvent(new Event("input", {bubbles: true}));
        """
    )
    assert page.one("#settings output").text == "up to 3"
    page.ask("Why?")
    assert page.server.asked[0]["outrider_num_nodes"] == 3
    assert page.text(".turn .gain dd") == "\u2013"
    page.js("[...document.querySelectorAll('.turn-foot button')].at(-1).click()")
    page.wait(lambda: page.text(".turn .result"))
    spent = page.js("return document.querySelector('acceptance-ribbon').tally.totalMs")
    gain = f"{PLAIN_MS / spent:.2f}\u00d7"
    assert page.text(".turn .result") == f"{gain} plain decoding; the texts are equal."
    assert page.text(".turn .gain dd") == gain
    # a step of one token in 14 ms is slower than plain decoding, 10 ms a token
    page.hover(page.all(".turn .token")[5])
    assert page.text(".card-verdict").startswith("\u25bc lost 4.00 ms")
    page.js("document.querySelector('[name=method][value=none]').click()")
    page.ask("Plainly?")
    assert page.server.asked[-1]["outrider_method"] == "none"
    assert "outrider_num_nodes" not in page.server.asked[-1]
    assert {by.get_attribute("class").split()[1] for by in page.all(".turn:last-child .token")} == {"plain"}


def test_a_ribbon_stands_alone_with_its_data_beside_it(page: ServedPage) -> None:
    """A report uses the same element: its steps stand in a block of JSON within it."""
    heights = page.js(
        """
        const ribbon = document.createElement("acceptance-ribbon");
        const data = document.createElement("script");
        data.type = "application/json";
        data.textContent = arguments[0];
        ribbon.append(data);
        document.body.append(ribbon);
        return [ribbon.text, ribbon.steps.length, ribbon.steps[1].nodes.length, ribbon.steps[1].ms];
        """,
        '[{"tokens": [{"text": "a", "by": "draft"}, {"text": "b", "by": "?"}]}, '
        '{"tokens": [7, null], "draft": {"texts": ["x", 5], "parents": ["y", 9]}, "ms": {"total": -1}}, null]',
    )
    assert heights == ["ab", 3, 2, None]


def test_the_page_fits_a_small_window_in_both_themes(page: ServedPage) -> None:
    size = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        page.open()
        page.ask("Show a tree")
        page.hover(page.all(".turn .token")[1])
        assert page.js("return document.documentElement.scrollWidth") <= 400
        papers = set()
        for theme in ("light", "dark"):
            page.wait(lambda: page.one("#theme").is_displayed())
            while page.js("return document.documentElement.dataset.theme") != theme:
                page.js("document.querySelector('#theme').click()")
            papers.add(page.js("return getComputedStyle(document.documentElement).backgroundColor"))
        assert papers == {"rgb(251, 250, 247)", "rgb(21, 23, 26)"}
        page.one("#tab-race").click()
        page.one(".race-form button").click()
        page.wait(lambda: page.one(".race-stage").is_displayed())
        assert page.js("return document.documentElement.scrollWidth") <= 400
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
