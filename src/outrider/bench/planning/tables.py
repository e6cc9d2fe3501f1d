"""A plan and a check as tables for the terminal.

    each node count    predicted speedup with that many nodes
    best               the number of nodes with the largest one, and the depth of its draft
    even               the tau below which that setting loses
    ideal > .. > host  the waterfall: free drafts, then the larger forward, drafting, and the rest of the step

Example of a line: batch 4, plain 610 tok/s, `1.00 1.31 1.42 1.38`, best 2, tau 1.95, even 1.37.
"""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from outrider.bench.planning.check import Check
from outrider.bench.planning.outlook import BatchOutlook, Choice, MethodOutlook, Outlook

__all__ = ["print_outlook"]

GAINS, LOSES = "green", "red"


def print_outlook(outlook: Outlook, console: Console) -> None:
    """Headline, tables, notes."""
    console.print(Text(f"{outlook.target} on {outlook.costs}", style="bold"))
    for method in outlook.methods:
        console.print(_method_table(method))
        console.print(Text(_verdict(method, outlook.largest_batch)))
    if len(outlook.methods) > 1:
        console.print(_best_table(outlook.best))
    if outlook.check is not None:
        console.print(_check_table(outlook.check))
        console.print(Text(_errors(outlook.check)))
    for note in outlook.notes:
        console.print(Text(f"- {note}"))


def _method_table(method: MethodOutlook) -> Table:
    counts = [str(one.num_nodes) for one in method.batches[0].nodes]
    head = ("batch", "plain tok/s", *counts, "best", "depth", "tau", "even", "tok/s", "ideal > verify > draft > host")
    table = _table(f"{method.method}: predicted speedup by number of nodes", head, left=(len(head) - 1,))
    for batch in method.batches:
        style = GAINS if batch.best.num_nodes else LOSES
        table.add_row(*map(Text, _batch_line(batch)), style=style)
    return table


def _batch_line(batch: BatchOutlook) -> list[str]:
    top = batch.best
    falls = top.waterfall
    waterfall = (falls.ideal, falls.with_verify, falls.with_draft, falls.with_host)
    return [
        str(batch.batch),
        f"{batch.plain_tokens_per_s:.0f}",
        *(f"{one.speedup:.2f}" for one in batch.nodes),
        str(top.num_nodes) if top.num_nodes else "none",
        str(top.depth),
        f"{top.tau:.2f}",
        f"{top.break_even_tau:.2f}",
        f"{top.tokens_per_s:.0f}",
        " > ".join(f"{value:.2f}" for value in waterfall),
    ]


def _verdict(method: MethodOutlook, limit: int | None) -> str:
    at = method.crossover_batch
    if at == 1:
        return f"{method.method} never pays here."
    until = f"up to batch {at - 1}, and from {at} on no more" if at is not None else f"up to batch {limit} at least"
    return f"{method.method} pays {until}."


def _best_table(choices: Sequence[Choice]) -> Table:
    table = _table("the best of all", ("batch", "method", "nodes", "depth", "speedup", "even"), left=(1,))
    for one in choices:
        numbers = (str(one.num_nodes), str(one.depth), f"{one.speedup:.2f}", f"{one.break_even_tau:.2f}")
        table.add_row(str(one.batch), Text(one.method or "plain decoding"), *numbers)
    return table


def _check_table(check: Check) -> Table:
    head = ("category", "method", "batch", "temp", "tau", "measured", "predicted", "error", "from steps", "error")
    table = _table(f"{check.run}: predicted against measured speedup", head, left=(0, 1))
    for row in check.rows:
        steps = ("-", "-") if row.predicted_from_steps is None else (f"{row.predicted_from_steps:.2f}", "")
        error = "-" if row.error_from_steps is None else _percent(row.error_from_steps)
        table.add_row(
            Text(row.category),
            Text(row.method),
            str(row.batch),
            f"{row.temperature:g}",
            f"{row.tau:.2f}",
            f"{row.measured:.2f}",
            f"{row.predicted:.2f}",
            _percent(row.error),
            steps[0],
            error,
        )
    return table


def _errors(check: Check) -> str:
    text = f"median absolute relative error over {len(check.rows)} rows: {100 * check.median_error:.1f} %"
    if check.median_error_from_steps is not None:
        text += f"; with every step priced by its own shape: {100 * check.median_error_from_steps:.1f} %"
    if check.left_out:
        text += f"; without costs, left out: {', '.join(check.left_out)}"
    return text


def _percent(share: float) -> str:
    return f"{100 * share:+.1f} %"


def _table(title: str, head: Sequence[str], left: Sequence[int]) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    for column, name in enumerate(head):
        table.add_column(name, justify="left" if column in left else "right", no_wrap=True)
    return table
