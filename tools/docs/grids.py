"""Small tables of a filed run: categories by methods at one setting, and methods by batch sizes.

A number is the speedup over plain decoding. Example: `grid(report)` has one row per category, one column per method:

    | Prompts | plain, tok/s | `ngram` | `suffix` |
    | chat | 63.1 | 1.13 | 1.06 |
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from outrider.records.display import markdown_code, markdown_text
from outrider.results.pages.results import our_rows, tables
from outrider.results.rows import PLAIN, Report, Row
from outrider.results.tables.cells import by_category

__all__ = ["grid", "grids", "lines_of", "loads", "served"]


def grid(report: Report, batch: int | None = None, temperature: float | None = None) -> str:
    """Return the speedups of one batch size and temperature, by default those of the first row."""
    rows = our_rows(report)
    setting = (batch or rows[0].batch, rows[0].temperature if temperature is None else temperature)
    found = {(row.category, row.label): row for row in rows if (row.batch, row.temperature) == setting}
    methods = [row.label for row in rows if row.method != PLAIN]
    columns = list(dict.fromkeys(methods))
    body = [
        [markdown_text(category), _rate(found.get((category, PLAIN))), *_speedups(found, category, columns)]
        for category in dict.fromkeys(row.category for row in by_category(rows))
    ]
    return lines_of(["Prompts", "plain, tok/s", *map(markdown_code, columns)], body)


def grids(report: Report) -> str:
    """Return a grid for each batch size and temperature, under a line that names them."""
    settings = sorted({(row.batch, row.temperature) for row in our_rows(report)})
    return "\n\n".join(
        f"Batch {batch}, temperature {temperature:g}:\n\n{grid(report, batch, temperature)}"
        for batch, temperature in settings
    )


def loads(report: Report) -> str:
    """Return the speedups of each method by batch size at the lowest temperature, over all prompts."""
    rows = our_rows(report)
    category = by_category(rows)[-1].category
    coldest = min(row.temperature for row in rows)
    members = [row for row in rows if (row.category, row.temperature) == (category, coldest)]
    batches = sorted({row.batch for row in members})
    found = {(row.label, row.batch): row for row in members}
    plain = ["plain, tok/s", *(_rate(found.get((PLAIN, batch))) for batch in batches)]
    methods = [label for label in dict.fromkeys(row.label for row in members) if label != PLAIN]
    body = [[markdown_code(name), *(_speedup(found.get((name, batch))) for batch in batches)] for name in methods]
    return lines_of(["Method", *(f"{batch} slots" if batch > 1 else "1 slot" for batch in batches)], [plain, *body])


def served(report: Report, hardware: str | None = None) -> str:
    """Return all tables of a run with servers, without memory and notes (the commands of its servers)."""
    rows = tuple(replace(row, memory_bytes=None) for row in report.rows)
    return tables(replace(report, rows=rows, notes=()), hardware)


def lines_of(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table of cells that are escaped already."""
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *body))


def _speedups(found: dict[tuple[str, str], Row], category: str, columns: Sequence[str]) -> list[str]:
    return [_speedup(found.get((category, label))) for label in columns]


def _speedup(row: Row | None) -> str:
    return "-" if row is None or row.speedup is None else f"{row.speedup.point:.2f}"


def _rate(row: Row | None) -> str:
    return "-" if row is None or row.tokens_per_s is None else f"{row.tokens_per_s:.1f}"
