"""Results as tables: for the terminal, and as Markdown.

One table per batch size and temperature, one line per category and method; losing cells are printed like winning ones.
External baselines follow in a table of their own, compared with our plain decoding. Lossless and unverified rows are
told apart in the last column. Serving engines have tables in `outrider.results.tables.serving`.

Example of a speedup: `1.92 [1.71, 2.10]`; of one prompt alone: `1.92`, without an interval.
"""

from collections.abc import Sequence

from rich.console import Console

from outrider.records.display import markdown_code, markdown_text, visible_line
from outrider.results.rows import PLAIN, SERVING, Report, Row
from outrider.results.tables.cells import (
    CATEGORY,
    METHOD,
    accepted_text,
    by_category,
    end_to_end_text,
    interval_text,
    number_text,
    rate_text,
    speedup_text,
    style_of,
)
from outrider.results.tables.fitting import print_note, print_sheet
from outrider.results.tables.serving import serving_sheets
from outrider.results.tables.sheet import Column, Sheet

__all__ = ["Sheet", "markdown", "print_report", "sheets_of"]

PARTS = ("propose", "verify", "accept", "commit", "host")


def print_report(report: Report, console: Console) -> None:
    """Print tables, notes and closing lines on a terminal."""
    print_note(_headline(report), console, style="bold")
    for sheet in sheets_of(report):
        print_sheet(sheet, console)
    if report.notes:
        console.print()
    for note in report.notes:
        print_note(f"- {note}", console)
    if report.closing:
        console.print()
    for line in report.closing:
        if line.startswith(" "):  # a command is copied, so it is not wrapped
            console.print(visible_line(line), soft_wrap=True)
        else:
            print_note(line, console, style="bold")


def markdown(report: Report) -> str:
    """Return notes, tables and closing lines as Markdown."""
    parts = [f"# {markdown_text(_headline(report))}", "\n".join(f"- {markdown_text(note)}" for note in report.notes)]
    parts += [f"## {markdown_text(sheet.title)}\n\n{sheet.markdown}" for sheet in sheets_of(report)]
    parts += ["\n".join(map(_closing_item, report.closing))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _closing_item(line: str) -> str:
    return f"  {markdown_code(line.strip())}" if line.startswith(" ") else f"- {markdown_text(line)}"


def sheets_of(report: Report) -> list[Sheet[Row]]:
    """Return the tables of a report."""
    ours = [row for row in report.rows if row.engine == "outrider"]
    keys = dict.fromkeys((row.batch, row.temperature) for row in ours)
    sheets = [_sheet(batch, temperature, ours) for batch, temperature in keys]
    sheets += serving_sheets(report.rows)
    external = by_category([row for row in report.rows if row.engine not in ("outrider", *SERVING)])
    return [*sheets, Sheet("external baselines, batch 1, temperature 0", EXTERNAL, external)] if external else sheets


def _headline(report: Report) -> str:
    commit = f", commit {report.commit[:10]}{' (dirty)' if report.dirty else ''}" if report.commit else ""
    start_up = "" if report.startup_s is None else f", start-up {report.startup_s:.1f} s (not in any figure)"
    return f"{report.model} on {report.device}{commit}{start_up}"


def _sheet(batch: int, temperature: float, rows: Sequence[Row]) -> Sheet[Row]:
    members = by_category([row for row in rows if (row.batch, row.temperature) == (batch, temperature)])
    prompts = sorted({row.num_prompts for row in members if row.category != "all"})
    counts = f"{prompts[0]} prompts" if len(prompts) == 1 else f"{prompts[0]}-{prompts[-1]} prompts"
    title = f"batch {batch}, temperature {temperature:g} ({counts} a category, {members[0].num_repeats} repeats)"
    return Sheet(title, OURS, members, style_of)


def _predicted(row: Row) -> str:
    return "-" if row.method == PLAIN else number_text(row.predicted_speedup)


def _break_even(row: Row) -> str:
    return "-" if row.method == PLAIN else number_text(row.break_even_tau)


def _shares(row: Row) -> str:
    return "/".join(f"{100 * row.shares[part]:.0f}" for part in PARTS) if row.shares else "-"


def _lossless(row: Row) -> str:
    found = row.lossless
    if found.verdict == "ties":
        return f"exact but for {found.ties} ties"
    return f"VIOLATED: {found.where}" if found.verdict == "violated" else found.verdict


OURS: tuple[Column[Row], ...] = (
    CATEGORY,
    METHOD,
    Column("tok/s", rate_text, drop=6, legend="tok/s: of all requests together"),
    Column("tau", lambda row: number_text(row.tau), legend="tau: tokens per target forward"),
    Column("accepted", accepted_text, drop=4, legend="accepted: share of drafts accepted to depth 1, 2, 3"),
    Column("speedup", speedup_text, legend="speedup: over plain decoding, with its 95 % interval"),
    Column("e2e", end_to_end_text, drop=5, legend="e2e: prompt included"),
    Column("predicted", _predicted, drop=2, legend="predicted: from tau and costs"),
    Column("even", _break_even, drop=3, legend="even: the tau below which it loses"),
    Column("p/v/a/c/h %", _shares, drop=1, legend="p/v/a/c/h: time to propose, verify, accept, commit, on the host"),
    Column("lossless", _lossless, kind="text"),
)
EXTERNAL: tuple[Column[Row], ...] = (
    CATEGORY,
    Column("baseline", lambda row: f"{row.engine} {row.method}", kind="name"),
    Column("tok/s", rate_text, drop=3, legend="tok/s: tokens per second"),
    Column(
        "e2e tok/s",
        lambda row: number_text(row.tokens_per_s_end_to_end, ".1f"),
        drop=2,
        legend="e2e: prompt included",
    ),
    Column(
        "our plain is faster by",
        lambda row: interval_text(row.speedup and row.speedup.inverse),
        legend="faster by: times, with a 95 % interval",
    ),
    Column(
        "e2e",
        lambda row: interval_text(row.speedup_end_to_end and row.speedup_end_to_end.inverse),
        drop=1,
        legend="e2e: prompt included",
    ),
)
