"""Speedup by batch size: to scale, and in words."""

from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from blocks import batches, pictures

from outrider.errors import RunError
from outrider.results.pages.batches import batch_chart, batch_table, has_batches
from outrider.results.pages.chart import main
from outrider.results.rows import Report, Row, to_json
from outrider.results.statistics import Interval, Percentiles

SPEEDUPS = {1: 2.0, 2: 1.6, 4: 1.2, 8: 0.75}


def row(method: str, batch: int, speedup: float, **changes: object) -> Row:
    return Row(
        engine="outrider",
        method=method,
        category="mixed",
        batch=batch,
        temperature=0.0,
        num_prompts=8,
        tokens_per_s=60.0 * batch,
        tokens_per_s_per_request=55.0,
        ttft_s=Percentiles(p50=0.25, p95=1.0, p99=2.0),
        speedup=Interval(point=speedup, low=speedup - 0.1, high=speedup + 0.1),
        **changes,
    )


@pytest.fixture
def sweep() -> Report:
    rows = [row("none", batch, 1.0) for batch in SPEEDUPS]
    rows += [row("head <&>", batch, speedup, scripted=True) for batch, speedup in SPEEDUPS.items()]
    return Report(run=None, target="t", dtype="bfloat16", device="cpu", commit=None, rows=tuple(rows))


def test_lines_are_to_scale(sweep: Report) -> None:
    drawing = ElementTree.fromstring(batch_chart(sweep))
    (curve,) = [part for part in drawing.iter() if part.get("class") == "curve"]
    (plain,) = [part for part in drawing.iter() if part.get("class") == "plain"]
    (ring,) = [part for part in drawing.iter() if part.get("class") == "cross"]
    points = [tuple(map(float, pair.split())) for pair in curve.attrib["d"].lstrip("M").split("L")]
    steps = [right[0] - left[0] for left, right in pairwise(points)]
    assert max(steps) - min(steps) < 0.1
    one = float(plain.attrib["y1"])
    unit = (one - points[0][1]) / (2.0 - 1.0)
    assert points[3][1] == pytest.approx(one + 0.25 * unit, abs=0.1)
    assert points[2][0] < float(ring.attrib["cx"]) < points[3][0]
    assert curve.attrib["data-method"] == "head <&> (scripted)"
    assert "begins to lose at batch 5.2" in batch_chart(sweep)


def test_the_table_names_the_crossover_and_the_rates(sweep: Report) -> None:
    table = batch_table(sweep)
    assert "| `none` | 0 | - | 1; 60 / 55; 0.25 |" in table
    assert "| `head <&> (scripted)` | 0 | 5.2 [" in table
    assert "| 2.00; 60 / 55; 0.25 |" in table


def test_a_run_at_one_batch_size_has_no_such_picture(report: Report) -> None:
    assert not has_batches(report)
    assert batch_table(report) == "This run has one batch size."
    with pytest.raises(RunError, match="no method at several batch sizes"):
        batch_chart(report)


def test_a_committed_sweep_is_drawn_and_shown(sweep: Report, tmp_path: Path) -> None:
    assert "No run has been committed" in batches(tmp_path, "batch")
    (tmp_path / "docs" / "results").mkdir(parents=True)
    (tmp_path / "docs" / "results" / "batch.json").write_text(to_json(sweep), encoding="utf-8")
    assert batches(tmp_path, "batch") == batch_table(sweep)
    assert {path.name for path in pictures(tmp_path)} == {"batch.svg", "batch.batches.svg"}


def test_from_the_command_line(sweep: Report, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(to_json(sweep), encoding="utf-8")
    assert main([str(tmp_path / "report.json"), str(tmp_path / "out.svg"), "--over-batches"]) == 0
    assert (tmp_path / "out.svg").read_text(encoding="utf-8") == batch_chart(sweep)
