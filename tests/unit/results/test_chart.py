"""The picture of a run: well-formed, self-contained, and to scale."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drawings import SVG, parsed, paths, scale, texts
from outrider.errors import RunError
from outrider.records.provenance import Hardware, collect_manifest, manifest_to_json
from outrider.results.figures.bars import NARROW
from outrider.results.pages.chart import chart, described, main, speedup_figure, speedups
from outrider.results.rows import Report, Row, to_json
from outrider.results.statistics import Interval


def cold(report: Report) -> Report:
    return replace(report, rows=tuple(row for row in report.rows if row.state == "cold"))


@pytest.mark.parametrize("width", [820, NARROW])
def test_bars_and_whiskers_are_to_scale(report: Report, width: int) -> None:
    rows = speedups(cold(report))
    drawing = parsed(speedup_figure("t", rows).svg(width))
    zero, unit = scale(drawing, "x")
    bars = paths(drawing, "bar")
    assert [round((max(x for x, _ in bar) - zero) / unit, 2) for bar in bars] == [2.5, 0.5, 1.05, 1.5]
    assert all(min(x for x, _ in bar) == pytest.approx(zero, abs=0.1) for bar in bars)
    spans = [[round((x - zero) / unit, 2) for x, _ in path] for path in paths(drawing, "whisker")]
    assert spans == [[2.0, 3.0], [0.4, 0.7], [0.9, 1.2], [1.2, 1.8]]
    assert paths(drawing, "line")[0][0][0] == pytest.approx(zero + unit, abs=0.1)
    middles = [sum(y for _, y in bar) / len(bar) for bar in bars]
    assert middles == sorted(middles)
    assert [path[0][1] for path in paths(drawing, "whisker")] == [
        pytest.approx(sum(y for _, y in bar[:4]) / 4, abs=0.1) for bar in bars
    ]


def test_a_losing_bar_has_its_own_colour(report: Report) -> None:
    drawing = parsed(chart(cold(report)))
    bars = [group for group in drawing.iter(f"{SVG}g") if group.get("class") == "bar"]
    fast, slow, unsure, total = (bar[0].attrib["fill"] for bar in bars)
    assert len({fast, slow, unsure}) == 3
    assert total == fast


def test_one_prompt_alone_has_a_bar_and_no_whisker(report: Report) -> None:
    drawing = parsed(chart(report, batch=4, temperature=1.0))
    assert len(paths(drawing, "bar")) == 1
    assert not paths(drawing, "whisker")
    assert "1.25x (NOT LOSSLESS)" in texts(drawing)


def test_the_picture_says_what_it_shows(report: Report) -> None:
    drawing = parsed(chart(report, hardware="a machine <3"))
    said = texts(drawing)
    assert drawing.get("role") == "img"
    assert drawing.findtext(f"{SVG}title") == "Speedup over plain decoding, batch 1, temperature 0"
    described = drawing.findtext(f"{SVG}desc") or ""
    assert "editing, slow: 0.50 times plain decoding (interval 0.40 to 0.70)." in described
    assert described.count("times plain decoding") == len(paths(drawing, "bar"))
    assert {"1.05x (unverified)", "3.00x (warm)", "0.50x"} <= set(said)
    assert said.index("chat | talk") > said.index("editing")
    assert said.index("all") > said.index("chat | talk")
    footnote = " ".join(said)
    for fact in ("tiny <&> model", "bfloat16", "a machine <3", "12", "0123456789", "local changes", "a slice"):
        assert fact in footnote
    assert "elsewhere" not in footnote


def test_a_file_loads_nothing_and_a_figure_of_a_page_takes_the_page_s_colours(report: Report) -> None:
    drawn = chart(report).replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|url\(|<script|<style|<image|style=|var\(", drawn)
    inline = speedup_figure("t", speedups(report)).svg(820, "a")
    assert not re.search(r"#[0-9a-f]{6}|style=", inline)
    ids = re.findall(r' id="([^"]+)"', inline)
    assert ids
    assert all(one.startswith("a-") for one in ids)


SPEEDUPS = st.floats(0.05, 30).map(lambda point: Interval(point=point, low=point * 0.9, high=point * 1.2))
NAMES = st.text(min_size=1, max_size=24)


@settings(max_examples=15)
@given(cells=st.lists(st.tuples(NAMES, NAMES, SPEEDUPS), min_size=1, max_size=4), target=NAMES)
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
    assert len(paths(drawing, "bar")) == len(rows)
    for path in (*paths(drawing, "bar"), *paths(drawing, "whisker")):
        assert all(0 <= x <= width and 0 <= y <= height for x, y in path)
    for part in drawing.iter(f"{SVG}text"):
        assert 0 <= float(part.attrib["x"]) <= width
        assert 0 < float(part.attrib["y"]) <= height


def test_the_same_run_gives_the_same_bytes_whatever_the_user_s_settings(
    report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib

    before = chart(report)
    monkeypatch.setitem(matplotlib.rcParams, "axes.grid", True)
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 30.0)
    assert chart(report) == before
    assert matplotlib.rcParams["font.size"] == 30.0


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
