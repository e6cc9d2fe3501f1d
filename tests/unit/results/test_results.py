"""A run as a table on a page."""

from outrider.results.pages.results import tables
from outrider.results.rows import Report

WANTED = """\
| Prompts | Method | batch 1, T = 0 | batch 4, T = 1 | Text |
|---|---|---|---|---|
| editing | `none` | 50.0 tok/s | - | exact |
| editing | `lookup` | 2.50 [2.00, 3.00] | 1.25 | **not lossless** |
| editing | `slow` | 0.50 [0.40, 0.70] | - | exact |
| editing | `lookup (warm)` | 3.00 [2.50, 3.50] | - | exact |
| chat \\| talk | `none` | 50.0 tok/s | - | exact |
| chat \\| talk | `lookup` | 1.05 [0.90, 1.20] | - | unverified |
| summary | `lookup` | - | - | exact |
| all | `none` | 50.0 tok/s | - | exact |
| all | `lookup` | 1.50 [1.20, 1.80] | - | exact |

| Prompts | External baseline | batch, T | tok/s | our plain decoding is faster by |
|---|---|---|---|---|
| editing | elsewhere generate | 1, 0 | 50.0 | 4.00 [2.00, 5.00] |

Speedup over plain decoding in the same run, with its 95 % interval. tiny &lt;&amp;&gt; model, bfloat16, on a machine, \
commit `0123456789` with local changes; at most 12 prompts a category, 3 repeats.

- a slice."""


def test_every_cell_is_printed_losing_ones_too(report: Report) -> None:
    assert tables(report, "a machine") == WANTED


def test_ties_are_counted_and_the_worst_verdict_stands(report: Report) -> None:
    rows = [row for row in report.rows if row.lossless.verdict != "violated"]
    shown = Report(run=None, target="t", dtype="d", device="cpu", commit=None, rows=tuple(rows))
    assert "| editing | `lookup` | 2.50 [2.00, 3.00] | exact but for 2 numerical ties |" in tables(shown)
