"""The fragment as text: nothing in it acts, nothing is fetched, and it stays small."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from outrider.traces.html import fragment, page, script_hash, style_hash
from outrider.traces.trace import Candidate, DraftTrace, StepTrace, TokenTrace, Trace

HOSTILE = "</script><script>hit()</script><!--<script>]]>'\"&amp;\u202e\x1b[31m\x00\u2028\ud800</style>"


def step(number: int, kept: tuple[str, ...], bonus: str, total: float = 9.0) -> StepTrace:
    """A step that keeps a chain of these texts, rejects one more node, and adds the bonus."""
    texts = (*kept, "wrong") if kept else ()
    tokens = [TokenTrace(id=1, text=text, by="draft", prob=0.75) for text in kept]
    tokens.append(
        TokenTrace(id=2, text=bonus, by="bonus" if kept else "plain", prob=0.5, top=(Candidate(text=bonus, prob=0.5),))
    )
    return StepTrace(
        step=number,
        tokens=tuple(tokens),
        draft=DraftTrace(
            ids=tuple(range(len(texts))),
            texts=texts,
            parents=tuple(range(-1, len(texts) - 1)),
            accepted=tuple(range(len(kept))),
            probs=tuple(0.75 for _ in texts),
        ),
        ms={"propose": 1.0, "verify": total - 1, "accept": 0.0, "commit": 0.0, "host": 0.0, "total": total},
    )


def trace(method: str, steps: tuple[StepTrace, ...], **changes: object) -> Trace:
    fields = {"target": "tiny", "category": "chat", "prompt_id": "chat-1", "prompt": "Why?"} | changes
    return Trace(method=method, steps=steps, **fields)  # type: ignore[arg-type]


class Parts(HTMLParser):
    """The tags of a page with their attributes, and the content of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts.append(data)


def data_of(text: str) -> list[dict[str, object]]:
    [found] = re.findall(r'<script type="application/json">(.*?)</script>', text)
    traces: list[dict[str, object]] = json.loads(found)
    return traces


def test_hostile_text_stays_text() -> None:
    bad = trace(
        HOSTILE, (step(1, (HOSTILE,), HOSTILE),), category=HOSTILE, prompt_id=HOSTILE, prompt=HOSTILE, target=HOSTILE
    )
    good = trace("m", (step(1, ("a",), "b"),))
    for made, wanted in (
        (fragment([bad], note=HOSTILE), fragment([good], note="n")),
        (page([bad], HOSTILE), page([good], "t")),
    ):
        assert [tag for tag, _ in Parts(made).tags] == [tag for tag, _ in Parts(wanted).tags]
        assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2028\u2029\ud800-\udfff]", made)
        made.encode()
    assert data_of(fragment([bad]))[0]["prompt"] == HOSTILE


def test_nothing_is_fetched_or_evaluated_and_the_policy_names_what_is_there() -> None:
    made = page([trace("m", (step(1, ("a",), "b"),))], "A run")
    assert not re.search(
        r"https?:(?!//www\.w3\.org/2000/svg)|@import|url\(|\beval\(|new Function|innerHTML|\son\w+=", made
    )
    parts = Parts(made)
    assert not [tag for tag, attributes in parts.tags if {"src", "href", "style"} & attributes.keys()]
    [policy] = [attributes["content"] for tag, attributes in parts.tags if "http-equiv" in attributes]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    scripts = re.findall(r"<script>(.*?)</script>", made, re.DOTALL)
    styles = re.findall(r"<style>(.*?)</style>", made, re.DOTALL)
    assert (len(scripts), len(styles)) == (1, 2)
    for content in (*scripts, *styles):
        assert base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() in policy
    assert script_hash() in policy
    assert style_hash() in policy
    assert not re.search(r"</?script|<!--", scripts[0], re.IGNORECASE)
    assert "import " not in scripts[0]


def test_a_reader_without_scripts_sees_the_first_answer() -> None:
    made = fragment([trace("m", (step(1, ("a ", "b "), "c"), step(2, (), "<d>")))], note="Recorded apart.")
    shown = re.sub(r"<(script|style).*?</\1>", "", made, flags=re.DOTALL)
    assert re.findall(r"<mark class=\"token draft[^>]*>([^<]*)</mark>", shown) == ["a ", "b "]
    assert re.findall(r"<span class=\"token (\w+)[^>]*>([^<]*)</span>", shown) == [
        ("bonus", "c"),
        ("plain", "&lt;d&gt;"),
    ]
    assert "Why?" in shown
    assert "Recorded apart." in shown


def test_plain_decoding_of_the_same_prompt_is_what_a_step_is_compared_with() -> None:
    plain = trace("none", (step(1, (), "a", 4.0), step(2, (), "b", 6.0)))
    other = trace("m", (step(1, (), "a"),), prompt_id="chat-2")
    hot = trace("m", (step(1, (), "a"),), temperature=1.0)
    found = data_of(fragment([plain, trace("m", (step(1, ("a",), "b"),)), other, hot]))
    assert [one["plain_ms"] for one in found] == [5.0, 5.0, None, None]
    assert [one["method"] for one in found] == ["m", "none", "m", "m"]


def test_traces_are_shown_prompt_by_prompt_with_drafts_first() -> None:
    steps = (step(1, (), "a"),)
    given = [trace(method, steps, prompt_id=id) for method in ("none", "m", "n") for id in ("1", "2")]
    found = [(one["prompt_id"], one["method"]) for one in data_of(fragment(given))]
    assert found == [(id, method) for id in ("1", "2") for method in ("m", "n", "none")]


def test_data_beyond_the_limit_is_left_out_and_said() -> None:
    one = trace("m", (step(1, ("a",), "b"),))
    size = len(json.dumps(data_of(fragment([one]))[0], separators=(",", ":")))
    many = [replace(one, prompt_id=str(number)) for number in range(9)]
    made = fragment(many, most_bytes=4 * (size + 2))
    assert len(data_of(made)) == 4
    assert "5 of 9 traces are left out" in made
    assert len(data_of(fragment(many, most_bytes=1))) == 1  # one is always shown
    assert "left out" not in fragment(many)


@pytest.mark.parametrize("traces", [[], [trace("m", ())]])
def test_nothing_to_show_is_no_error(traces: list[Trace]) -> None:
    assert len(data_of(fragment(traces))) == len(traces)
