"""The picture: well-formed, self-contained, and to scale."""

import re
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.errors import RunError
from outrider.records.provenance import Hardware, collect_manifest, manifest_to_json
from outrider.results.pages.chart import chart, described, main, speedups
from outrider.results.rows import Report, Row, to_json
from outrider.results.statistics import Interval

SVG = "{http://www.w3.org/2000/svg}"


def parsed(drawn: str) -> Element:
    return ElementTree.fromstring(drawn)


def classed(drawing: Element, name: str) -> list[Element]:
    return [part for part in drawing.iter() if part.get("class") == name]


def bars_of(drawing: Element) -> dict[tuple[str, str], list[float]]:
    """Start and end of every bar, by category and method."""
    return {
        (bar.attrib["data-category"], bar.attrib["data-method"]): [
            float(bar.attrib["x"]),
            float(bar.attrib["x"]) + float(bar.attrib["width"]),
        ]
        for bar in classed(drawing, "bar")
    }


def texts(drawing: Element) -> list[str]:
    return [part.text or "" for part in drawing.iter(f"{SVG}text")]


def cold(report: Report) -> Report:
    return Report(
        run=None,
        target="t",
        dtype="float32",
        device="cpu",
        commit=None,
        rows=tuple(row for row in report.rows if row.state == "cold"),
    )


def test_bars_are_as_long_as_their_speedup(report: Report) -> None:
    drawing = parsed(chart(cold(report)))
    bars = bars_of(drawing)
    assert bars.keys() == {
        ("chat | talk", "lookup"),
        ("editing", "lookup"),
        ("editing", "slow"),
        ("all", "lookup"),
    }
    starts = {start for start, _ in bars.values()}
    assert len(starts) == 1
    one = float(classed(drawing, "plain")[0].attrib["x1"])
    unit = one - starts.pop()
    for row in speedups(cold(report)):
        assert row.speedup is not None
        start, end = bars[row.category, row.method]
        assert (end - start) / unit == pytest.approx(row.speedup.point, abs=1e-3)


def test_a_losing_bar_ends_before_the_line_and_has_its_own_colour(report: Report) -> None:
    drawing = parsed(chart(report))
    bars, one = bars_of(drawing), float(classed(drawing, "plain")[0].attrib["x1"])
    assert bars["editing", "slow"][1] < one < bars["editing", "lookup"][1]
    colours = {
        (bar.attrib["data-category"], bar.attrib["data-method"]): bar.get("fill") for bar in classed(drawing, "bar")
    }
    assert len({colours["editing", "slow"], colours["editing", "lookup"], colours["chat | talk", "lookup"]}) == 3
    assert colours["all", "lookup"] == colours["editing", "lookup"]


def test_whiskers_span_the_interval(report: Report) -> None:
    drawing = parsed(chart(cold(report)))
    left = next(iter(bars_of(drawing).values()))[0]
    unit = float(classed(drawing, "plain")[0].attrib["x1"]) - left
    spans = [[float(x) for x in re.findall(r"M([\d.]+) ", path.attrib["d"])] for path in classed(drawing, "whisker")]
    found = [((min(span) - left) / unit, (max(span) - left) / unit) for span in spans]
    wanted = [(row.speedup.low, row.speedup.high) for row in speedups(cold(report)) if row.speedup]
    assert found == [pytest.approx(pair, abs=1e-3) for pair in wanted]


def test_one_prompt_alone_has_a_bar_and_no_whisker(report: Report) -> None:
    drawing = parsed(chart(report, batch=4, temperature=1.0))
    assert len(classed(drawing, "bar")) == 1
    assert not classed(drawing, "whisker")
    assert "1.25x (NOT LOSSLESS)" in texts(drawing)


def test_the_picture_says_what_it_shows(report: Report) -> None:
    drawing = parsed(chart(report, hardware="a machine <3"))
    said = texts(drawing)
    assert drawing.get("role") == "img"
    assert drawing.findtext(f"{SVG}title") == "Speedup over plain decoding, batch 1, temperature 0"
    described = drawing.findtext(f"{SVG}desc") or ""
    assert "editing, slow: 0.50 times plain decoding (interval 0.40 to 0.70)." in described
    assert described.count("times plain decoding") == len(classed(drawing, "bar"))
    assert {"1.05x (unverified)", "3.00x (warm)", "0.50x"} <= set(said)
    assert said.index("chat | talk") > said.index("editing")
    assert said.index("all") > said.index("chat | talk")
    footnote = " ".join(said)
    for fact in ("tiny <&> model", "bfloat16", "a machine <3", "12", "0123456789", "local changes", "a slice"):
        assert fact in footnote
    assert "elsewhere" not in footnote


def test_nothing_is_loaded_from_anywhere(report: Report) -> None:
    drawn = chart(report).replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|url\(|href|<script|<style|<image", drawn)


SPEEDUPS = st.floats(0.05, 30).map(lambda point: Interval(point=point, low=point * 0.9, high=point * 1.2))
NAMES = st.text(min_size=1, max_size=24)


@given(cells=st.lists(st.tuples(NAMES, NAMES, SPEEDUPS), min_size=1, max_size=8), target=NAMES)
def test_any_names_and_figures_stay_inside(cells: list[tuple[str, str, Interval]], target: str) -> None:
    """Escaped, and nothing drawn lies outside the picture."""
    rows = [
        Row(
            engine="outrider",
            method=f"m{method}",
            category=category,
            batch=2,
            temperature=0.7,
            num_prompts=3,
            speedup=speedup,
        )
        for category, method, speedup in cells
    ]
    shown = Report(run=None, target=target, dtype="float32", device="cpu", commit=None, rows=tuple(rows))
    drawing = parsed(chart(shown))
    width, height = map(float, drawing.attrib["viewBox"].split()[2:])
    assert len(classed(drawing, "bar")) == len(rows)
    for _, end in bars_of(drawing).values():
        assert 0 < end <= width
    for path in classed(drawing, "whisker"):
        assert max(float(x) for x in re.findall(r"[MH]([\d.]+)", path.attrib["d"])) <= width
    for part in drawing.iter(f"{SVG}text"):
        assert 0 <= float(part.attrib["x"]) <= width
        assert 0 < float(part.attrib["y"]) <= height


@pytest.mark.parametrize(
    ("batch", "temperature", "says"),
    [(8, None, "batch=8.*it has batch 1, temperature 0, batch 4, temperature 1"), (4, 0.0, "temperature=0.0")],
)
def test_a_setting_that_was_not_measured_is_named(
    report: Report, batch: int, temperature: float | None, says: str
) -> None:
    with pytest.raises(RunError, match=says):
        chart(report, batch=batch, temperature=temperature)


def test_a_report_of_plain_decoding_alone_has_no_picture(report: Report) -> None:
    plain = Report(run=None, target="t", dtype="d", device="cpu", commit=None, rows=report.rows[:1])
    with pytest.raises(RunError, match="no speedup at all"):
        chart(plain)


def test_the_command_names_the_machine_of_the_manifest_beside(report: Report, tmp_path: Path) -> None:
    source, out = tmp_path / "report.json", tmp_path / "out.svg"
    source.write_text(to_json(report), encoding="utf-8")
    assert main([str(source), str(out), "--batch", "1"]) == 0
    assert "on cpu;" in " ".join(texts(parsed(out.read_text(encoding="utf-8"))))
    manifest = collect_manifest(seed=0, settings={}, workload_hash="")
    (tmp_path / "manifest.json").write_text(manifest_to_json(manifest), encoding="utf-8")
    assert main([str(source), str(out)]) == 0
    assert manifest.hardware.cpu in " ".join(texts(parsed(out.read_text(encoding="utf-8"))))


def test_what_cannot_be_drawn_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "missing.json"), str(tmp_path / "out.svg")]) == 2
    assert capsys.readouterr().err.startswith("outrider: ")
    assert not (tmp_path / "out.svg").exists()


def test_a_machine_is_its_gpus_or_its_processor() -> None:
    fields = {
        "num_physical_cores": 2,
        "num_usable_cores": 4,
        "memory_bytes": 1,
        "flags": (),
        "gpu_memory_bytes": (),
        "cuda": None,
        "system": "",
    }
    assert described(Hardware(cpu="Abacus 9", gpus=(), **fields)) == "Abacus 9, 4 cores"
    assert described(Hardware(cpu="Abacus 9", gpus=("Loom", "Loom", "Jenny"), **fields)) == "2 x Loom, 1 x Jenny"
