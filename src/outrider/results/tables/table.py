"""Results as tables: for the terminal, and as Markdown.

One table per batch size and temperature, one line per category and method; losing cells are printed like winning ones.
External baselines follow in a table of their own, compared with our plain decoding. Lossless and unverified rows are
told apart in the last column. Serving engines have tables in `outrider.results.tables.serving`.

    tok/s           decoded tokens per second, all requests together
    tau             tokens per target forward
    accepted        share of drafts accepted to depth 1, 2, 3
    speedup         over plain decoding, decode time only, with its 95 % interval; e2e includes reading the prompt
    predicted       from tau and the measured costs of a step
    even            the tau below which the method loses
    p/v/a/c/h %     time spent proposing, verifying, accepting, committing, on the host

Example of a speedup: `1.92 [1.71, 2.10]`; of one prompt alone: `1.92`, without an interval.
"""

from collections.abc import Iterable, Sequence

from rich.console import Console

from outrider.records.display import markdown_text
from outrider.results.rows import PLAIN, SERVING, Report, Row
from outrider.results.statistics import Interval
from outrider.results.tables.fitting import print_note, print_sheet
from outrider.results.tables.serving import serving_sheets
from outrider.results.tables.sheet import Sheet, by_category, interval_text, number_text, style_of

__all__ = ["Sheet", "markdown", "print_report", "sheets_of"]

HEAD = (
    "category",
    "method",
    "tok/s",
    "tau",
    "accepted",
    "speedup",
    "e2e",
    "predicted",
    "even",
    "p/v/a/c/h %",
    "lossless",
)
DROPS = ("p/v/a/c/h %", "predicted", "even", "accepted", "e2e", "tok/s")
LEGEND = (
    (("tok/s",), "tok/s: of all requests together"),
    (("tau",), "tau: tokens per target forward"),
    (("accepted",), "accepted: share of drafts accepted to depth 1, 2, 3"),
    (("speedup",), "speedup: over plain decoding, with its 95 % interval"),
    (("e2e",), "e2e: prompt included"),
    (("predicted",), "predicted: from tau and costs"),
    (("even",), "even: the tau below which it loses"),
    (("p/v/a/c/h %",), "p/v/a/c/h: time to propose, verify, accept, commit, on the host"),
)
EXTERNAL_DROPS = ("e2e", "e2e tok/s", "tok/s")
EXTERNAL_LEGEND = (
    (("tok/s",), "tok/s: tokens per second"),
    (("e2e tok/s", "e2e"), "e2e: prompt included"),
    (("our plain is faster by",), "faster by: times, with a 95 % interval"),
)
EXTERNAL_HEAD = ("category", "baseline", "tok/s", "e2e tok/s", "our plain is faster by", "e2e")
PARTS = ("propose", "verify", "accept", "commit", "host")


def sheets_of(report: Report) -> list[Sheet]:
    """The tables of a report."""
    ours = [row for row in report.rows if row.engine == "outrider"]
    keys = dict.fromkeys((row.batch, row.temperature) for row in ours)
    sheets = [_sheet(batch, temperature, ours) for batch, temperature in keys]
    sheets += serving_sheets(report.rows)
    external = [row for row in report.rows if row.engine not in ("outrider", *SERVING)]
    return [*sheets, _external_sheet(external)] if external else sheets


def print_report(report: Report, console: Console) -> None:
    """Notes and tables for a terminal."""
    print_note(_headline(report), console, style="bold")
    for sheet in sheets_of(report):
        print_sheet(sheet, console)
    if report.notes:
        console.print()
    for note in report.notes:
        print_note(f"- {note}", console)


def markdown(report: Report) -> str:
    """The same as Markdown."""
    parts = [f"# {markdown_text(_headline(report))}", "\n".join(f"- {markdown_text(note)}" for note in report.notes)]
    parts += [f"## {markdown_text(sheet.title)}\n\n{sheet.markdown}" for sheet in sheets_of(report)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _headline(report: Report) -> str:
    commit = f", commit {report.commit[:10]}{' (dirty)' if report.dirty else ''}" if report.commit else ""
    start_up = "" if report.startup_s is None else f", start-up {report.startup_s:.1f} s (not in any figure)"
    return f"{report.target}, {report.dtype} on {report.device}{commit}{start_up}"


def _sheet(batch: int, temperature: float, rows: Iterable[Row]) -> Sheet:
    members = by_category([row for row in rows if (row.batch, row.temperature) == (batch, temperature)])
    prompts = sorted({row.num_prompts for row in members if row.category != "all"})
    counts = f"{prompts[0]} prompts" if len(prompts) == 1 else f"{prompts[0]}-{prompts[-1]} prompts"
    return Sheet(
        title=f"batch {batch}, temperature {temperature:g} ({counts} a category, {members[0].num_repeats} repeats)",
        head=HEAD,
        lines=tuple(_line(row) for row in members),
        styles=tuple(style_of(row) for row in members),
        legend=LEGEND,
        drops=DROPS,
        ends_with_text=True,
    )


def _external_sheet(rows: Sequence[Row]) -> Sheet:
    members = by_category(rows)
    return Sheet(
        title="external baselines, batch 1, temperature 0",
        head=EXTERNAL_HEAD,
        lines=tuple(_external_line(row) for row in members),
        styles=("",) * len(members),
        legend=EXTERNAL_LEGEND,
        drops=EXTERNAL_DROPS,
    )


def _line(row: Row) -> tuple[str, ...]:
    baseline = row.method == PLAIN
    return (
        row.category,
        row.label,
        number_text(row.tokens_per_s, ".1f"),
        number_text(row.tau, ".2f"),
        " ".join(f"{share:.2f}" for share in (row.acceptance_per_pos or ())[:3]) or "-",
        "1 (baseline)" if baseline else interval_text(row.speedup),
        "1"
        if baseline
        else number_text(None if row.speedup_end_to_end is None else row.speedup_end_to_end.point, ".2f"),
        "-" if baseline else number_text(row.predicted_speedup, ".2f"),
        "-" if baseline else number_text(row.break_even_tau, ".2f"),
        "/".join(f"{100 * row.shares[part]:.0f}" for part in PARTS) if row.shares else "-",
        _lossless(row),
    )


def _external_line(row: Row) -> tuple[str, ...]:
    return (
        row.category,
        f"{row.engine} {row.method}",
        number_text(row.tokens_per_s, ".1f"),
        number_text(row.tokens_per_s_end_to_end, ".1f"),
        interval_text(_inverse(row.speedup)),
        interval_text(_inverse(row.speedup_end_to_end)),
    )


def _inverse(interval: Interval | None) -> Interval | None:
    if interval is None:
        return None
    low, high = interval.low, interval.high
    return Interval(point=1 / interval.point, low=1 / high if high else None, high=1 / low if low else None)


def _lossless(row: Row) -> str:
    found = row.lossless
    if found.verdict == "ties":
        return f"exact but for {found.ties} ties"
    return f"VIOLATED: {found.where}" if found.verdict == "violated" else found.verdict
