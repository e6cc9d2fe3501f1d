"""Costs and acceptance of a run, cell by cell."""

from dataclasses import replace

from outrider.results.pages.details import detail_table
from outrider.results.rows import Report


def test_a_line_can_be_added_up(report: Report) -> None:
    lookup = next(row for row in report.rows if row.method == "lookup" and row.category == "editing")
    lookup = replace(
        lookup,
        tau=2.0,
        mean_acceptance_length=2.5,
        acceptance_per_pos=(0.9, 0.6, 0.3, 0.2, 0.1),
        verify_cost_ratio=1.09,
        draft_cost_ratio=0.12,
        overhead_ratio=0.02,
        break_even_tau=1.23,
        predicted_speedup=1.63,
        shares={"propose": 0.1, "verify": 0.88, "accept": 0.01, "commit": 0.0, "host": 0.01},
    )
    found = detail_table(replace(report, rows=(lookup,))).splitlines()
    assert found[2] == (
        "| editing | `lookup` | 1, 0 | 2.00 | 2.50 | 0.90 0.60 0.30 0.20 | 1.09 | 0.12 | 0.02 | 1.23 | 1.63 | "
        "2.50 [2.00, 3.00] | - | 10 % 88 % 2 % | 2 ties |"
    )
    assert len({line.count("|") for line in found}) == 1


def test_every_cell_that_speculated_has_a_line_and_sums_come_last(report: Report) -> None:
    lines = detail_table(report).splitlines()[2:]
    assert len(lines) == sum(row.engine == "outrider" and row.method != "none" for row in report.rows)
    assert lines[-1].startswith("| all |")
    assert "| chat \\| talk | `lookup` | 1, 0 | - |" in lines[-3] + lines[-4] + lines[-2]
