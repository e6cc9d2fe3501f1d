"""Speedup by batch size: to scale, and in words."""

from itertools import pairwise
from pathlib import Path

import pytest
from blocks import batches, pictures

from drawings import SVG, parsed, paths, scale, texts
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
    drawing = parsed(batch_chart(sweep))
    (curve,), (line,) = paths(drawing, "curve"), paths(drawing, "line")
    steps = [right[0] - left[0] for left, right in pairwise(curve)]
    assert max(steps) - min(steps) < 0.1
    zero, unit = scale(drawing, "y")
    assert [round((y - zero) / unit, 2) for _, y in curve] == [2.0, 1.6, 1.2, 0.75]
    assert line[0][1] == line[1][1] == pytest.approx(zero + unit, abs=0.1)
    (ring,) = [
        use for part in drawing.iter() if part.get("class") == "ring" for use in part.iter() if use.tag == f"{SVG}use"
    ]
    # 4 * 2 ** (log 1.2 / (log 1.2 - log 0.75)) = 5.24 is 0.388 of the way from 4 to 8
    assert float(ring.attrib["x"]) == pytest.approx(curve[2][0] + 0.388 * steps[2], abs=0.2)
    assert float(ring.attrib["y"]) == pytest.approx(zero + unit, abs=0.1)
    assert "head <&> (scripted)" in texts(drawing)
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
