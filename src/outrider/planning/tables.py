"""A plan and a check as tables for the terminal.

    each node count    predicted speedup with that many nodes
    best               the number of nodes with the largest one, and the depth of its draft; "even" within the margin
    even               the tau below which that setting loses
    ideal > .. > host  the waterfall: free drafts, then the larger forward, drafting, and the rest of the step

Example of a line: batch 4, plain 610 tok/s, `1.00 1.31 1.42 1.38`, best 2, tau 1.95, even 1.37.
"""

from functools import partial
from typing import NamedTuple

from rich.console import Console

from outrider.planning.check import Check, CheckedRow
from outrider.planning.outlook import BatchOutlook, BestMethod, Forecast, MethodOutlook, Outlook
from outrider.results.tables.cells import number_text
from outrider.results.tables.fitting import print_note, print_sheet
from outrider.results.tables.sheet import LOSES, WINS, Column, Sheet

__all__ = ["print_outlook"]

EVEN = "even: the tau below which it loses"
WATERFALL = "ideal > verify > draft > host"


def print_outlook(outlook: Outlook, console: Console) -> None:
    """Print headline, tables and notes."""
    print_note(f"{outlook.target} on {outlook.costs}", console, style="bold")
    for method in outlook.methods:
        print_sheet(_method_table(method, outlook.margin), console)
        print_note(_verdict(method, outlook.largest_batch, outlook.margin), console)
    if len(outlook.methods) > 1:
        print_sheet(Sheet("the best of all", BEST, outlook.best), console)
    if outlook.check is not None:
        title = f"{outlook.check.run}: predicted against measured speedup"
        print_sheet(Sheet(title, CHECKED, outlook.check.rows), console)
        print_note(_errors(outlook.check), console)
    if outlook.notes:
        console.print()
    for note in outlook.notes:
        print_note(f"- {note}", console)


class _Line(NamedTuple):
    """A batch size, and whether its best speedup is within the margin of 1."""

    batch: BatchOutlook
    is_even: bool

    @property
    def best(self) -> Forecast:
        return self.batch.best


def _method_table(method: MethodOutlook, margin: float) -> Sheet[_Line]:
    lines = [_Line(batch, bool(batch.best.num_nodes) and batch.best.speedup <= 1 + margin) for batch in method.batches]
    meaning = "0, 1, ..: the speedup with that many nodes; best: where it is largest"
    if any(line.is_even for line in lines):
        meaning += ", (even) within the margin of 1"
    counts = [str(one.num_nodes) for one in method.batches[0].nodes]
    chosen = {str(batch.best.num_nodes) for batch in method.batches}
    others = [count for count in counts if count not in chosen]
    order = (WATERFALL, "tok/s", "plain tok/s", *others[1::2], "depth", *others[::2], "even", "tau")
    drop = {head: turn for turn, head in enumerate(order, 1)}
    speedups = [Column(count, partial(_speedup, place), drop=drop.get(count, 0)) for place, count in enumerate(counts)]
    columns: list[Column[_Line]] = [
        Column("batch", lambda line: str(line.batch.batch), legend=meaning),
        Column("plain tok/s", lambda line: f"{line.batch.plain_tokens_per_s:.0f}", drop=drop["plain tok/s"]),
        *speedups,
        Column("best", _best),
        Column("depth", lambda line: str(line.best.depth), drop=drop["depth"], legend="depth: of that draft"),
        Column("tau", lambda line: f"{line.best.tau:.2f}", drop=drop["tau"], legend="tau: tokens per target forward"),
        Column("even", lambda line: f"{line.best.break_even_tau:.2f}", drop=drop["even"], legend=EVEN),
        Column("tok/s", lambda line: f"{line.best.tokens_per_s:.0f}", drop=drop["tok/s"]),
        Column(WATERFALL, _waterfall, drop=drop[WATERFALL], kind="text", legend=f"{WATERFALL}: what each cost leaves"),
    ]
    return Sheet(f"{method.method}: predicted speedup by number of nodes", columns, lines, _style)


def _speedup(place: int, line: _Line) -> str:
    return f"{line.batch.nodes[place].speedup:.2f}"


def _best(line: _Line) -> str:
    return f"{line.best.num_nodes} (even)" if line.is_even else str(line.best.num_nodes or "none")


def _waterfall(line: _Line) -> str:
    falls = line.best.waterfall
    return " > ".join(f"{value:.2f}" for value in (falls.ideal, falls.with_verify, falls.with_draft, falls.with_host))


def _style(line: _Line) -> str:
    return "" if line.is_even else WINS if line.best.num_nodes else LOSES


def _verdict(method: MethodOutlook, limit: int | None, margin: float) -> str:
    """Return where it pays, where it is about even, and where it loses."""
    even, loses = method.even_from, method.loses_from
    said = f"{method.method} "
    if even is None:
        return f"{said}pays up to batch {limit} at least."
    said += f"pays up to batch {even - 1}" if even > 1 else "pays nowhere for certain"
    if loses is None:
        return f"{said}, and from {even} to {limit} at least it is about even (within {100 * margin:.0f} %)."
    if loses > even:
        said += f", is about even from {even} to {loses - 1} (within {100 * margin:.0f} %)"
    return f"{method.method} never pays here." if loses == 1 else f"{said}, and loses from {loses} on."


def _error_from_steps(row: CheckedRow) -> str:
    return "-" if row.error_from_steps is None else _percent(row.error_from_steps)


BEST: tuple[Column[BestMethod], ...] = (
    Column("batch", lambda one: str(one.batch)),
    Column("method", lambda one: (one.method or "plain decoding") + ", about even" * one.about_even, kind="name"),
    Column("nodes", lambda one: str(one.num_nodes), legend="nodes, depth: of the draft"),
    Column("depth", lambda one: str(one.depth), drop=2, legend="nodes, depth: of the draft"),
    Column("speedup", lambda one: f"{one.speedup:.2f}"),
    Column("even", lambda one: f"{one.break_even_tau:.2f}", drop=1, legend=EVEN),
)
CHECKED: tuple[Column[CheckedRow], ...] = (
    Column("category", lambda row: row.category, kind="name"),
    Column("method", lambda row: row.method, kind="name"),
    Column("batch", lambda row: str(row.batch)),
    Column("temp", lambda row: f"{row.temperature:g}"),
    Column("tau", lambda row: f"{row.tau:.2f}", drop=3),
    Column("measured", lambda row: f"{row.measured:.2f}"),
    Column("predicted", lambda row: f"{row.predicted:.2f}", legend="predicted: from tau and costs"),
    Column("error", lambda row: _percent(row.error)),
    Column(
        "from steps",
        lambda row: number_text(row.predicted_from_steps),
        drop=2,
        legend="from steps: with every step priced by its own shape",
    ),
    Column("its error", _error_from_steps, drop=1),
)


def _errors(check: Check) -> str:
    text = f"median absolute relative error over {len(check.rows)} rows: {100 * check.median_error:.1f} %"
    if check.median_error_from_steps is not None:
        text += f"; with every step priced by its own shape: {100 * check.median_error_from_steps:.1f} %"
    if check.left_out:
        text += f"; without costs, left out: {', '.join(check.left_out)}"
    return text


def _percent(share: float) -> str:
    return f"{100 * share:+.1f} %"
