"""Digests of a run: one number for each cell, in the order of the run."""

from dataclasses import replace

from grids import grid, grids, loads, served

from outrider.results.rows import Report, Row


def test_a_grid_has_a_row_for_each_category_and_a_column_for_each_method(report: Report) -> None:
    cold = replace(report, rows=tuple(row for row in report.rows if row.state == "cold"))
    lines = grid(cold).splitlines()
    assert lines[0] == "| Prompts | plain, tok/s | `lookup` | `slow` |"
    assert lines[2:] == [
        "| editing | 50.0 | 2.50 | 0.50 |",
        r"| chat \| talk | 50.0 | 1.05 | - |",
        "| summary | - | - | - |",
        "| all | 50.0 | 1.50 | - |",
    ]


def test_each_setting_gets_a_grid_of_its_own(report: Report) -> None:
    text = grids(report)
    assert text.index("Batch 1, temperature 0:") < text.index("Batch 4, temperature 1:")
    assert "| editing | - | 1.25 | - |" in text


def test_loads_show_the_coldest_temperature_by_batch(report: Report) -> None:
    more = [replace(row, batch=2, speedup=None) for row in report.rows if row.method == "none"]
    text = loads(replace(report, rows=(*report.rows, *more)))
    assert text.splitlines() == [
        "| Method | 1 slot | 2 slots |",
        "| --- | --- | --- |",
        "| plain, tok/s | 50.0 | 50.0 |",
        "| `lookup` | 1.50 | - |",
    ]


def test_a_scripted_method_says_so(report: Report) -> None:
    scripted = tuple[Row, ...](replace(row, scripted=row.method == "lookup") for row in report.rows)
    assert "`lookup (scripted)`" in grid(replace(report, rows=scripted))


def test_tables_of_servers_leave_out_memory_and_notes(report: Report) -> None:
    sizes = {"proposer_weights": 1, "proposer_cache": 1, "proposer_cache_per_token": 1, "target_cache_per_token": 1}
    rows = tuple(replace(row, memory_bytes=sizes) for row in report.rows)
    text = served(replace(report, rows=rows))
    assert "| editing | `lookup` | 2.50 [2.00, 3.00] |" in text
    assert "own weights" not in text
    assert "a slice." not in text
