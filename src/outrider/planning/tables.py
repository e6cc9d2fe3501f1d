"""A plan and a check as tables for the terminal.

    each node count    predicted speedup with that many nodes
    best               the number of nodes with the largest one, and the depth of its draft; "even" within the margin
    even               the tau below which that setting loses
    ideal > .. > host  the waterfall: free drafts, then the larger forward, drafting, and the rest of the step

Example of a line: batch 4, plain 610 tok/s, `1.00 1.31 1.42 1.38`, best 2, tau 1.95, even 1.37.
"""

from collections.abc import Sequence

from rich.console import Console

from outrider.planning.check import Check
from outrider.planning.outlook import BatchOutlook, BestMethod, MethodOutlook, Outlook
from outrider.results.tables.fitting import print_note, print_sheet
from outrider.results.tables.sheet import Sheet

__all__ = ["print_outlook"]

GAINS, LOSES = "green", "red"
SAID_EVEN = ", (even) within the margin of 1"
WATERFALL = "ideal > verify > draft > host"


def print_outlook(outlook: Outlook, console: Console) -> None:
    """Headline, tables, notes."""
    print_note(f"{outlook.target} on {outlook.costs}", console, style="bold")
    for method in outlook.methods:
        print_sheet(_method_table(method, outlook.margin), console)
        print_note(_verdict(method, outlook.largest_batch, outlook.margin), console)
    if len(outlook.methods) > 1:
        print_sheet(_best_table(outlook.best), console)
    if outlook.check is not None:
        print_sheet(_check_table(outlook.check), console)
        print_note(_errors(outlook.check), console)
    if outlook.notes:
        console.print()
    for note in outlook.notes:
        print_note(f"- {note}", console)


def _method_table(method: MethodOutlook, margin: float) -> Sheet:
    counts = [str(one.num_nodes) for one in method.batches[0].nodes]
    chosen = {str(batch.best.num_nodes) for batch in method.batches}
    others = [count for count in counts if count not in chosen]
    even = [bool(batch.best.num_nodes) and batch.best.speedup <= 1 + margin for batch in method.batches]
    return Sheet(
        title=f"{method.method}: predicted speedup by number of nodes",
        head=("batch", "plain tok/s", *counts, "best", "depth", "tau", "even", "tok/s", WATERFALL),
        lines=tuple(tuple(_batch_line(*pair)) for pair in zip(method.batches, even, strict=True)),
        styles=tuple(
            "" if is_even else GAINS if batch.best.num_nodes else LOSES
            for batch, is_even in zip(method.batches, even, strict=True)
        ),
        legend=(
            (
                ("batch",),
                "0, 1, ..: the speedup with that many nodes; best: where it is largest" + SAID_EVEN * any(even),
            ),
            (("depth",), "depth: of that draft"),
            (("tau",), "tau: tokens per target forward"),
            (("even",), "even: the tau below which it loses"),
            ((WATERFALL,), f"{WATERFALL}: what each cost leaves"),
        ),
        names=(),
        drops=(WATERFALL, "tok/s", "plain tok/s", *others[1::2], "depth", *others[::2], "even", "tau"),
        ends_with_text=True,
    )


def _batch_line(batch: BatchOutlook, even: bool) -> list[str]:
    top = batch.best
    falls = top.waterfall
    waterfall = (falls.ideal, falls.with_verify, falls.with_draft, falls.with_host)
    return [
        str(batch.batch),
        f"{batch.plain_tokens_per_s:.0f}",
        *(f"{one.speedup:.2f}" for one in batch.nodes),
        f"{top.num_nodes} (even)" if even else str(top.num_nodes) if top.num_nodes else "none",
        str(top.depth),
        f"{top.tau:.2f}",
        f"{top.break_even_tau:.2f}",
        f"{top.tokens_per_s:.0f}",
        " > ".join(f"{value:.2f}" for value in waterfall),
    ]


def _verdict(method: MethodOutlook, limit: int | None, margin: float) -> str:
    """Where it pays, where it is about even, and where it loses."""
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


def _best_table(choices: Sequence[BestMethod]) -> Sheet:
    lines = [
        (
            str(one.batch),
            (one.method or "plain decoding") + ", about even" * one.about_even,
            str(one.num_nodes),
            str(one.depth),
            f"{one.speedup:.2f}",
            f"{one.break_even_tau:.2f}",
        )
        for one in choices
    ]
    return Sheet(
        title="the best of all",
        head=("batch", "method", "nodes", "depth", "speedup", "even"),
        lines=tuple(lines),
        styles=("",) * len(lines),
        legend=((("nodes", "depth"), "nodes, depth: of the draft"), (("even",), "even: the tau below which it loses")),
        names=(1,),
        drops=("even", "depth"),
    )


def _check_table(check: Check) -> Sheet:
    lines = [
        (
            row.category,
            row.method,
            str(row.batch),
            f"{row.temperature:g}",
            f"{row.tau:.2f}",
            f"{row.measured:.2f}",
            f"{row.predicted:.2f}",
            _percent(row.error),
            "-" if row.predicted_from_steps is None else f"{row.predicted_from_steps:.2f}",
            "-" if row.error_from_steps is None else _percent(row.error_from_steps),
        )
        for row in check.rows
    ]
    return Sheet(
        title=f"{check.run}: predicted against measured speedup",
        head=(
            "category",
            "method",
            "batch",
            "temp",
            "tau",
            "measured",
            "predicted",
            "error",
            "from steps",
            "its error",
        ),
        lines=tuple(lines),
        styles=("",) * len(lines),
        legend=(
            (("predicted",), "predicted: from tau and costs"),
            (("from steps",), "from steps: with every step priced by its own shape"),
        ),
        drops=("its error", "from steps", "tau"),
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
