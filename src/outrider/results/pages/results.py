"""A run as one table for a page: methods down, batch sizes and temperatures across.

A cell is the speedup over plain decoding in the same run with its 95 % interval; plain decoding's own line has tokens
per second. Losing cells are printed like winning ones. The last column is the worst verdict of the line: a number whose
texts nobody compared is called unverified.

    | editing | `lookup` | 1.92 [1.71, 2.10] | exact |

External baselines follow, with how many times faster our plain decoding is, and what each method held in memory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from outrider.records.display import markdown_code, markdown_text
from outrider.results.rows import PLAIN, SERVING, Report, Row
from outrider.results.statistics import Interval
from outrider.results.tables.serving import serving_sheets

__all__ = ["category_places", "interval_text", "our_rows", "short_tables", "tables"]

VERDICTS = ("exact", "ties", "unverified", "violated")
"""From the best to the worst."""


def tables(report: Report, hardware: str | None = None) -> str:
    """The run as Markdown: a table, external baselines, memory, and where the numbers come from."""
    ours, external = our_rows(report), _externals(report)
    served = [f"{markdown_text(sheet.title)}:\n\n{sheet.markdown}" for sheet in serving_sheets(report.rows)]
    parts = [_table(ours) if ours else "", *served, _external(external), _memory(ours)]
    parts.append(_origin(report, ours or report.rows, hardware))
    return "\n\n".join(part for part in parts if part)


def short_tables(report: Report, hardware: str | None = None) -> str:
    """The table, external baselines and the machine, for a page that says elsewhere where the rest is."""
    ours = our_rows(report)
    parts = [_table(ours), _external(_externals(report)), _origin(replace(report, notes=()), ours, hardware)]
    return "\n\n".join(part for part in parts if part)


def our_rows(report: Report) -> list[Row]:
    """What our own engine did."""
    return [row for row in report.rows if row.engine == "outrider"]


def _externals(report: Report) -> list[Row]:
    """Baselines that run beside our engine, category by category."""
    return [row for row in report.rows if row.engine not in ("outrider", *SERVING) and row.category != "all"]


def _table(rows: Sequence[Row]) -> str:
    settings = sorted({(row.batch, row.temperature) for row in rows})
    head = ["Prompts", "Method", *(f"batch {batch}, T = {temperature:g}" for batch, temperature in settings)]
    lines = ["| " + " | ".join([*head, "Text"]) + " |", "|---|---|" + "---|" * len(settings) + "---|"]
    cells: dict[tuple[str, str], dict[tuple[int, float], Row]] = {}
    for row in rows:
        cells.setdefault((row.category, row.label), {})[row.batch, row.temperature] = row
    places = category_places(rows)
    for category, method in sorted(cells, key=lambda key: places[key[0]]):
        line = cells[category, method]
        figures = [_figure(line[setting]) if setting in line else "-" for setting in settings]
        lines.append(
            "| " + " | ".join([markdown_text(category), markdown_code(method), *figures, _verdict(line)]) + " |"
        )
    return "\n".join(lines)


def category_places(rows: Sequence[Row]) -> dict[str, int]:
    """The order in which categories are shown: that of the run, `all` last."""
    places = {category: place for place, category in enumerate(dict.fromkeys(row.category for row in rows))}
    return places | ({"all": len(places)} if "all" in places else {})


def _figure(row: Row) -> str:
    if row.method == PLAIN:
        return "-" if row.tokens_per_s is None else f"{row.tokens_per_s:.1f} tok/s"
    return interval_text(row.speedup)


def interval_text(interval: Interval | None) -> str:
    """A speedup with its bounds, where it has some."""
    if interval is None:
        return "-"
    return f"{interval.point:.2f}" + ("" if interval.low is None else f" [{interval.low:.2f}, {interval.high:.2f}]")


def _verdict(line: Mapping[tuple[int, float], Row]) -> str:
    found = [row.lossless for row in line.values()]
    worst = max((lossless.verdict for lossless in found), key=VERDICTS.index)
    if worst == "ties":
        return f"exact but for {sum(lossless.ties for lossless in found)} numerical ties"
    return "**not lossless**" if worst == "violated" else worst


def _external(rows: Sequence[Row]) -> str:
    known = [row for row in rows if row.speedup is not None]
    if not known:
        return ""
    lines = [
        "| Prompts | External baseline | batch, T | tok/s | our plain decoding is faster by |",
        "|---|---|---|---|---|",
    ]
    for row in known:
        assert row.speedup is not None, "rows without one were left out"
        rate = "-" if row.tokens_per_s is None else f"{row.tokens_per_s:.1f}"
        setting = f"{row.batch}, {row.temperature:g}"
        name = markdown_text(f"{row.engine} {row.method}")
        lines.append(
            f"| {markdown_text(row.category)} | {name} | {setting} | {rate} | {interval_text(_inverse(row.speedup))} |"
        )
    return "\n".join(lines)


def _memory(rows: Sequence[Row]) -> str:
    """One line per method: the largest figures of its rows. Empty for runs that did not ask for bytes per token."""
    sizes: dict[str, dict[str, int]] = {}
    for row in rows:
        largest = sizes.setdefault(row.label, {})
        largest |= {name: max(size, largest.get(name, 0)) for name, size in (row.memory_bytes or {}).items()}
    lines = [
        f"| {markdown_code(method)} | {size['proposer_weights'] / 1e6:.1f} MB "
        f"| {size['proposer_cache'] / 1e6:.2f} MB | {size['proposer_cache_per_token']} B "
        f"| {size['target_cache_per_token']} B |"
        for method, size in sizes.items()
        if "proposer_cache_per_token" in size
    ]
    head = "| Method | own weights | most held by its session | per token of text | target's cache per token |"
    return "\n".join([head, "|---|---|---|---|---|", *lines]) if lines else ""


def _inverse(interval: Interval) -> Interval:
    low, high = interval.low, interval.high
    return Interval(point=1 / interval.point, low=1 / high if high else None, high=1 / low if low else None)


def _origin(report: Report, rows: Sequence[Row], hardware: str | None) -> str:
    prompts = max((row.num_prompts for row in rows if row.category != "all"), default=0)
    repeats = max((row.num_repeats for row in rows), default=0)
    changes = " with local changes" if report.dirty else ""
    commit = f", commit {markdown_code(report.commit[:10])}{changes}" if report.commit else ""
    facts = markdown_text(f"{report.target}, {report.dtype}, on {hardware or report.device}") + commit
    counts = f"at most {prompts} prompts a category, {repeats} repeats"
    notes = "".join(f"\n- {markdown_text(note)}" for note in report.notes)
    return f"Speedup over plain decoding in the same run, with its 95 % interval. {facts}; {counts}.\n{notes}".rstrip()
