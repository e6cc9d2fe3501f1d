"""A run as one table for a page: methods down, batch sizes and temperatures across.

A cell is the speedup over plain decoding in the same run with its 95 % interval; plain decoding's own line has tokens
per second. Losing cells are printed like winning ones. The last column is the worst verdict of the line: a number whose
texts nobody compared is called unverified.

    | editing | `lookup` | 1.92 [1.71, 2.10] | exact |

External baselines follow, with how many times faster our plain decoding is, and what each method held in memory.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import itemgetter

from outrider.records.display import markdown_code, markdown_text
from outrider.results.rows import PLAIN, SERVING, Report, Row
from outrider.results.tables.cells import by_category, interval_text, rate_text
from outrider.results.tables.serving import serving_sheets
from outrider.results.tables.sheet import Column, Sheet

__all__ = ["our_rows", "short_tables", "tables"]

VERDICTS = ("exact", "ties", "unverified", "violated")
"""From the best to the worst."""


def tables(report: Report, hardware: str | None = None) -> str:
    """Return the run as Markdown: a table, external baselines, memory, and where the numbers come from."""
    ours, external = our_rows(report), _externals(report)
    served = [f"{markdown_text(sheet.title)}:\n\n{sheet.markdown}" for sheet in serving_sheets(report.rows)]
    parts = [_table(ours) if ours else "", *served, _external(external), _memory(ours)]
    parts.append(_origin(report, ours or report.rows, hardware))
    return "\n\n".join(part for part in parts if part)


def short_tables(report: Report, hardware: str | None = None) -> str:
    """Return the table, external baselines and the machine, for a page that says elsewhere where the rest is."""
    ours = our_rows(report)
    parts = [_table(ours), _external(_externals(report)), _origin(replace(report, notes=()), ours, hardware)]
    return "\n\n".join(part for part in parts if part)


def our_rows(report: Report) -> list[Row]:
    """Return the rows of our own engine."""
    return [row for row in report.rows if row.engine == "outrider"]


def _externals(report: Report) -> list[Row]:
    """Return the baselines that run beside our engine, category by category."""
    return [row for row in report.rows if row.engine not in ("outrider", *SERVING) and row.category != "all"]


def _table(rows: Sequence[Row]) -> str:
    settings = sorted({(row.batch, row.temperature) for row in rows})
    lines: dict[tuple[str, str], dict[tuple[int, float], Row]] = {}
    for row in by_category(rows):
        lines.setdefault((row.category, row.label), {})[row.batch, row.temperature] = row
    columns: list[Column[tuple[str, str]]] = [
        Column("Prompts", itemgetter(0), kind="text"),
        Column("Method", itemgetter(1), kind="code"),
    ]
    for batch, temperature in settings:
        figure = partial(_figure, lines, (batch, temperature))
        columns.append(Column(f"batch {batch}, T = {temperature:g}", figure, kind="raw"))
    columns.append(Column("Text", lambda key: _verdict(lines[key].values()), kind="raw"))
    return Sheet("", columns, list(lines)).markdown


def _figure(
    lines: Mapping[tuple[str, str], Mapping[tuple[int, float], Row]], setting: tuple[int, float], key: tuple[str, str]
) -> str:
    row = lines[key].get(setting)
    if row is None:
        return "-"
    if row.method == PLAIN:
        return "-" if row.tokens_per_s is None else f"{rate_text(row)} tok/s"
    return interval_text(row.speedup)


def _verdict(rows: Iterable[Row]) -> str:
    found = [row.lossless for row in rows]
    worst = max((lossless.verdict for lossless in found), key=VERDICTS.index)
    if worst == "ties":
        return f"exact but for {sum(lossless.ties for lossless in found)} numerical ties"
    return "**not lossless**" if worst == "violated" else worst


def _external(rows: Sequence[Row]) -> str:
    known = [row for row in rows if row.speedup is not None]
    return Sheet("", EXTERNAL, known).markdown if known else ""


EXTERNAL: tuple[Column[Row], ...] = (
    Column("Prompts", lambda row: row.category, kind="text"),
    Column("External baseline", lambda row: f"{row.engine} {row.method}", kind="text"),
    Column("batch, T", lambda row: f"{row.batch}, {row.temperature:g}", kind="raw"),
    Column("tok/s", rate_text, kind="raw"),
    Column(
        "our plain decoding is faster by", lambda row: interval_text(row.speedup and row.speedup.inverse), kind="raw"
    ),
)


def _memory(rows: Sequence[Row]) -> str:
    """Return a line per method: the largest figures of its rows. Empty where no bytes per token were measured."""
    sizes: dict[str, dict[str, int]] = {}
    for row in rows:
        largest = sizes.setdefault(row.label, {})
        largest |= {name: max(size, largest.get(name, 0)) for name, size in (row.memory_bytes or {}).items()}
    known = [(method, size) for method, size in sizes.items() if "proposer_cache_per_token" in size]
    return Sheet("", MEMORY, known).markdown if known else ""


MEMORY: tuple[Column[tuple[str, Mapping[str, int]]], ...] = (
    Column("Method", itemgetter(0), kind="code"),
    Column("own weights", lambda line: f"{line[1]['proposer_weights'] / 1e6:.1f} MB", kind="raw"),
    Column("most held by its session", lambda line: f"{line[1]['proposer_cache'] / 1e6:.2f} MB", kind="raw"),
    Column("per token of text", lambda line: f"{line[1]['proposer_cache_per_token']} B", kind="raw"),
    Column("target's cache per token", lambda line: f"{line[1]['target_cache_per_token']} B", kind="raw"),
)


def _origin(report: Report, rows: Sequence[Row], hardware: str | None) -> str:
    prompts = max((row.num_prompts for row in rows if row.category != "all"), default=0)
    repeats = max((row.num_repeats for row in rows), default=0)
    changes = " with local changes" if report.dirty else ""
    commit = f", commit {markdown_code(report.commit[:10])}{changes}" if report.commit else ""
    facts = markdown_text(f"{report.model}, on {hardware or report.device}") + commit
    counts = f"at most {prompts} prompts a category, {repeats} repeats"
    notes = "".join(f"\n- {markdown_text(note)}" for note in report.notes)
    return f"Speedup over plain decoding in the same run, with its 95 % interval. {facts}; {counts}.\n{notes}".rstrip()
