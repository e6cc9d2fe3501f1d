"""The page of an audit: read back by an HTML parser, it says everything the report holds, and nothing in it runs."""

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from outrider.audit.output.page import audit_page
from outrider.audit.report import AuditReport, Finding, Layer, detectable_rate
from outrider.records.provenance import collect_manifest

HOSTILE = (
    "<script>window.hit = 1</script>",
    "\"><img src=x onerror='window.hit = 2'>",
    "</td></table></style><iframe srcdoc=x>",
    "$policy ${title} $$ %s {0}",
    "&lt;b&gt;",
)
VOID = {"meta", "img", "link", "br", "input"}


class Page(HTMLParser):
    """The page's elements and texts, with every element closed by its own end tag."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.cells: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open += [] if tag in VOID else [tag]
        self.cells += [""] if tag in ("td", "th", "dd", "dt", "caption") else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if {"td", "th", "dd", "dt", "caption"} & set(self.open):
            self.cells[-1] += data


def report(*layers: Layer, target: str = "tiny", settings: dict[str, object] | None = None) -> AuditReport:
    return AuditReport(
        verdict="PASS",
        sentence="the text is the target's own",
        target=target,
        methods=("ngram", "suffix"),
        num_compared=1500,
        num_ties=2,
        num_violations=0,
        rate=detectable_rate(1500),
        layers=layers,
        manifest=collect_manifest(seed=0, settings=settings or {"seed": 0}, workload_hash="abc"),
        seconds=12.0,
    )


TEXT = Layer.of(
    "text",
    [
        Finding(name="ngram, T=0", verdict="PASS", detail="750 tokens are equal", counts={"num_compared": 750}),
        Finding(name="suffix, T=0", verdict="FAIL", detail="token 17 is another", counts={"chance": 0.00012}),
    ],
    "all equal",
)
CONTROLS = Layer.of(
    "controls",
    [
        Finding(name="ngram: the runner-up", verdict="PASS", detail="caught after 3 changes: the text differs"),
        Finding(name="ngram: a cache one short", verdict="PASS", detail="no occasion: nothing happened"),
        Finding(name="suffix: one too many", verdict="INCONCLUSIVE", detail="4 changes were not caught"),
    ],
    "1 planted fault",
)


def test_every_finding_stands_in_a_row_of_a_table_with_a_caption() -> None:
    page = Page(audit_page(report(TEXT, CONTROLS, settings={"seed": 7, "methods": ["ngram"], "page": None})))
    cells = page.cells
    assert cells[5:9] == ["ngram, T=0", "PASS", "750 tokens are equal", "compared 750"]
    assert cells[9:13] == ["suffix, T=0", "FAIL", "token 17 is another", "chance 0.00012"]
    for name, caught in (("the runner-up", "yes"), ("a cache one short", "no occasion")):
        assert cells[cells.index(f"ngram: {name}") + 1] == caught
    assert cells[cells.index("suffix: one too many") + 1] == "no"
    tags = [tag for tag, _ in page.tags]
    assert tags.count("table") == tags.count("caption") == 2
    headers = [attrs.get("scope") for tag, attrs in page.tags if tag == "th"]
    assert (headers.count("col"), headers.count("row"), len(headers)) == (8, 5, 13)
    pairs = dict(zip(cells[cells.index("seed") :: 2], cells[cells.index("seed") + 1 :: 2], strict=False))
    assert (pairs["seed"], pairs["methods"], pairs["page"]) == ("7", '["ngram"]', "null")
    assert "prompts (SHA-256)" in pairs


def test_the_verdict_and_what_could_be_missed_are_sentences() -> None:
    text = re.sub(r"\s+", " ", "".join(Page(audit_page(report(TEXT))).texts))
    assert "PASS: the text is the target's own." in text
    # (1 - 0.001995)^1500 = 0.05
    assert "1500 tokens were compared (2 numerical ties, 0 violations)" in text
    assert "0.20% of the tokens (1 of 501)" in text
    nothing = replace(report(), rate=None, num_compared=0)
    assert "nothing can be said about rare faults" in audit_page(nothing)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_names_are_text_wherever_they_stand(hostile: str) -> None:
    layer = Layer.of("text", [Finding(name=hostile, verdict="FAIL", detail=hostile, counts={hostile: 1})], hostile)
    found = report(layer, target=hostile, settings={hostile: hostile, "prompts": [hostile]})
    found = replace(found, methods=(hostile,), sentence=hostile)
    page, harmless = Page(audit_page(found)), Page(audit_page(report(TEXT)))
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in harmless.tags}
    assert {name for _, attrs in page.tags for name in attrs} == {name for _, attrs in harmless.tags for name in attrs}
    # name, detail, setting and its value; title twice
    assert page.cells.count(hostile) == 4
    assert sum(f"Audit of {hostile}: {hostile}" == text for text in page.texts) == 2


def test_characters_that_act_on_a_line_are_shown_as_escapes() -> None:
    acting = "\x1b[2J\u202eright\ud800\x00"
    text = audit_page(report(Layer.of("text", [Finding(name=acting, verdict="PASS", detail="x")], "x")))
    assert r"\x1b[2J\u202eright\ud800\x00" in text
    text.encode("utf-8")


def test_nothing_runs_and_nothing_is_loaded() -> None:
    text = audit_page(report(TEXT, CONTROLS))
    page = Page(text)
    [policy] = [
        attrs["content"] or "" for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    [style] = re.findall("<style>(.*?)</style>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert rules == {
        "default-src": "'none'",
        "style-src": f"'sha256-{digest}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert {"script", "img", "link", "iframe", "form"}.isdisjoint(tag for tag, _ in page.tags)
    assert not {"src", "href", "style", "onclick"} & {name for _, attrs in page.tags for name in attrs}
    assert ("meta", {"name": "color-scheme", "content": "light dark"}) in page.tags
