"""The page of a run: the answer, the sections that there are data for, nothing of others' text as markup."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from hostile import ATTACK, hostile, hostile_manifest, write_run

from outrider.cli import main
from outrider.records.provenance import collect_manifest
from outrider.report.answer import answer_of, other_answers
from outrider.report.contents import sections_of
from outrider.report.page import page_of
from outrider.report.sources import Source, read_source
from outrider.results.rows import Report

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "docs" / "results"


class Outline(HTMLParser):
    """Elements and text of a page; every attribute's name by element."""

    VOID = ("meta", "link", "br", "img", "path", "use", "input")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.said: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def source_of(report: Report) -> Source:
    return Source(name="made-up", path=Path("runs/made-up"), bench=report)


def test_the_answer_comes_first(report: Report) -> None:
    assert answer_of(source_of(report)) == (
        "lookup writes the text of tiny <&> model 1.50 times (95 % interval 1.20 to 1.80) as fast as plain decoding, "
        "batch 1, temperature 0, and every answer is plain decoding's own."
    )
    assert other_answers(source_of(report)) == []  # the only row of the other setting is not lossless
    page = Outline(page_of([source_of(report)]))
    text = [line.strip() for line in page.said if line.strip()]
    assert text[text.index("Outrider report · made-up") + 1].startswith("lookup writes the text of tiny <&> model")


def test_where_nothing_wins_the_answer_says_so(report: Report) -> None:
    lost = replace(report, rows=tuple(row for row in report.rows if row.method == "none" or row.method == "slow"))
    lost = replace(lost, rows=tuple(row for row in lost.rows if row.category == "editing"))
    assert answer_of(source_of(lost)).startswith("Nothing is faster than plain decoding of tiny <&> model")
    alone = replace(report, rows=report.rows[:1])
    assert "compares no method" in answer_of(source_of(alone))


def test_a_page_is_well_formed_and_loads_nothing(report: Report) -> None:
    page = page_of([source_of(hostile(report))])
    outline = Outline(page)
    assert not {"img", "script", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in outline.elements}
    for tag, attributes in outline.elements:
        assert not any(name.startswith("on") or name in ("style", "src", "srcset") for name in attributes), tag
        if "href" in attributes:
            assert re.match(r"#[\w-]+$|data:,$", attributes["href"] or "")
    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {(attributes["href"] or "")[1:] for tag, attributes in outline.elements if tag == "a"}
    assert targets <= set(ids)
    (policy,) = (one["content"] or "" for _, one in outline.elements if one.get("http-equiv"))
    assert policy.startswith("default-src 'none'; ")
    assert policy.endswith("script-src 'none'")
    assert "\x1b" not in page
    assert "\x00" not in page
    assert "\u202e" not in page
    assert "".join(outline.said).count(ATTACK) > 5
    assert "49" not in outline.said


def test_headings_descend_one_by_one(report: Report) -> None:
    for sources in ([source_of(report)], [source_of(report), source_of(replace(report, target="other"))]):
        levels = [int(tag[1]) for tag, _ in Outline(page_of(sources)).elements if re.fullmatch(r"h\d", tag)]
        assert levels.count(1) == 1
        assert levels[0] == 1
        assert all(after - before <= 1 for before, after in pairwise(levels))


def test_every_figure_has_a_name_and_a_table(report: Report) -> None:
    outline = Outline(page_of([source_of(report)]))
    assert outline.count("figure") == outline.count("figcaption") > 0
    assert outline.count("svg") == 2 * outline.count("figure")  # a wide and a narrow one
    assert outline.count("table") == outline.count("caption") >= outline.count("figure")
    assert outline.count("details") >= outline.count("figure")
    assert all("scope" in attributes for tag, attributes in outline.elements if tag == "th")


def test_a_filed_run_makes_a_small_page() -> None:
    assert len(page_of([read_source(RESULTS / "quick.json")]).encode()) < 1_000_000


def test_a_run_makes_the_same_page_each_time(report: Report) -> None:
    assert page_of([source_of(report)]) == page_of([source_of(report)])


def test_sections_without_data_are_absent(report: Report) -> None:
    names = [section.name for section in sections_of(source_of(report))]
    assert names[0] == "speed"
    assert names[-1] == "origin"
    assert "engines" in names
    ours = replace(report, rows=tuple(row for row in report.rows if row.engine == "outrider"))
    assert "engines" not in [section.name for section in sections_of(source_of(ours))]
    assert "speed" not in [section.name for section in sections_of(source_of(replace(report, rows=report.rows[:1])))]


def test_losing_cells_are_listed_the_worst_first(report: Report) -> None:
    (losing,) = (section for section in sections_of(source_of(report)) if section.name == "losing")
    ((line,),) = (table.lines for table in losing.tables)
    assert [cell.text for cell in line[:4]] == ["slow", "editing", "batch 1, temperature 0", "0.50 [0.40, 0.70]"]
    assert losing.says[0].startswith("1 of 6 cells are slower than plain decoding, 1 of them by more than chance.")


def test_provenance_is_shown(report: Report) -> None:
    manifest = collect_manifest(seed=7, settings={"batches": [1, 4]}, workload_hash="ab" * 32)
    page = page_of([replace(source_of(report), manifest=manifest)])
    for fact in ("0123456789abcdef, with local changes", manifest.hardware.cpu, "ab" * 32, "[1, 4]", "torch"):
        assert fact in page
    assert "No manifest lies beside" in page_of([source_of(report)])


def test_the_command_writes_beside_the_run(report: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", hostile(report), hostile_manifest())
    assert main(["report", str(run)]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    page = run / "report.html"
    assert told == {"schema": "outrider.report/1", "output": str(page), "bytes": page.stat().st_size}
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []
    assert main(["report", str(run), str(run), "--output", str(tmp_path / "two.html")]) == 0
    assert "2 runs side by side" in (tmp_path / "two.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("has_browser", [True, False])
def test_the_page_is_shown_where_there_is_a_browser(
    report: Report,
    has_browser: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shown: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: shown.append(address) or has_browser)
    run = write_run(tmp_path / "run", report)
    assert main(["report", str(run)]) == 0
    assert shown == []
    assert main(["report", str(run), "--open"]) == 0
    assert shown == [(run / "report.html").resolve().as_uri()]
    assert ("no browser could be started" in caplog.text) is not has_browser
