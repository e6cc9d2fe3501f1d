"""A profile as tables for a terminal.

    forward     ms, and in brackets how many one-row forwards of the same batch that is: what verifying costs
    bandwidth   the bytes that one row per slot must read (weights, and the cache of every slot) per second, as a share
                of what a plain streaming read of memory reaches
    experts     with a mixture of experts: what rows cost by the bytes that they must read, beside what was measured
    context     ms of a forward, over the committed tokens of every slot
    drafts      ms per step, and in brackets the draft cost ratio c: in plain forwards of the same batch
    around it   judging the rows and the rest of a step, ms
    spread      how far sweeps were apart; if that is much, something else used the machine, and the table is off

Example: `21.3 (1.42)` in the column "8" is a forward of eight rows per slot that takes as long as 1.42 of one row.
"""

from collections.abc import Mapping, Sequence
from operator import itemgetter

from rich.console import Console

from outrider.costs.tables import STEADY, CostFile, MeasuredDraftCosts
from outrider.results.tables.fitting import print_note, print_sheet
from outrider.results.tables.sheet import Column, Sheet
from outrider.target import Mixture

__all__ = ["bandwidth_share", "print_profile"]

Line = tuple[str, ...]
MIXTURE = ("size", "num_experts", "num_chosen")


def print_profile(file: CostFile, console: Console) -> None:
    """Print all tables."""
    identity = file.identity
    threads = f", {identity.num_threads} threads" if identity.num_threads else ""
    machine = identity.cpu if identity.device == "cpu" else identity.device
    numbers = ", ".join(dict.fromkeys((identity.weights, identity.dtype)))
    isa = f", {identity.isa}" if identity.isa else ""
    print_note(f"{identity.target}, {numbers}, on {machine}{threads}{isa}", console, style="bold")
    spread, style = _spread(file)
    print_note(spread, console, style=style)
    for sheet in (_forwards(file), _bandwidth(file), *_experts(file), _contexts(file), *_drafts(file), _around(file)):
        print_sheet(sheet, console)


def _spread(file: CostFile) -> tuple[str, str]:
    """Return how far sweeps were apart in words, and their colour."""
    spread = file.spread
    if spread is None:
        return "how far sweeps were apart is unknown", ""
    said = f"{file.facts.get('repeats')} sweeps, {100 * spread:.0f} % apart"
    if spread <= STEADY:
        return said, ""
    return f"{said}: something else used the machine; measure again when it is quiet", "yellow"


def bandwidth_share(file: CostFile, batch: int, context: float) -> float | None:
    """Return the bytes read by a forward of one row per slot, per second, over the measured bandwidth; None if that is
    unknown."""
    bytes_per_s = file.facts.get("memory_bytes_per_s")
    if not isinstance(bytes_per_s, (int, float)) or bytes_per_s <= 0:
        return None
    return _bytes_read(file, batch, batch, context) / file.target.forward_s(batch, batch, context) / bytes_per_s


def _bytes_read(file: CostFile, batch: int, num_rows: int, context: float) -> float:
    """Return the bytes of weights and cache that a forward must read, of experts those that it may be expected to."""
    num_bytes = file.identity.weight_bytes + batch * context * file.identity.bytes_per_token
    mixture = _mixture(file)
    return num_bytes if mixture is None else num_bytes - mixture.size + mixture.read(num_rows)


def _mixture(file: CostFile) -> Mixture | None:
    facts = file.facts.get("mixture")
    if not isinstance(facts, Mapping) or not all(isinstance(facts.get(name), int | float) for name in MIXTURE):
        return None
    return Mixture(**{name: facts[name] for name in MIXTURE})


def _experts(file: CostFile) -> list[Sheet[Line]]:
    """Return what rows cost by memory traffic and as measured, for a target with experts."""
    if _mixture(file) is None:
        return []
    slots, rows, contexts = _axes(file)
    context = _middle(contexts)
    lines = []
    for batch in slots:
        one_bytes = _bytes_read(file, batch, batch, context)
        one_s = file.target.forward_s(batch, batch, context)
        cells = []
        for count in rows:
            predicted = _bytes_read(file, batch, batch * count, context) / one_bytes
            cells.append(f"{predicted:.2f} ({file.target.forward_s(batch, batch * count, context) / one_s:.2f})")
        lines.append((str(batch), *cells))
    legend = "1.80 (1.92): forwards of one row per slot, by the bytes of experts that rows read, and measured"
    return [_sheet(f"experts at context {context}, by rows per slot", "batch", rows, lines, legend)]


def _forwards(file: CostFile) -> Sheet[Line]:
    slots, rows, contexts = _axes(file)
    context = _middle(contexts)
    lines = []
    for batch in slots:
        one = file.target.forward_s(batch, batch, context)
        lines.append(
            (str(batch), *[_ratio(file.target.forward_s(batch, batch * count, context), one) for count in rows])
        )
    legend = "12.3 (1.42): ms, and how many forwards of one row per slot that is"
    return _sheet(f"forward at context {context}, by rows per slot", "batch", rows, lines, legend)


def _bandwidth(file: CostFile) -> Sheet[Line]:
    slots, _, contexts = _axes(file)
    context = _middle(contexts)
    reached = file.facts.get("memory_bytes_per_s")
    known = f"{reached / 1e9:.1f} GB/s" if isinstance(reached, (int, float)) else "unknown"
    lines = []
    for batch in slots:
        share = bandwidth_share(file, batch, context)
        seconds = file.target.forward_s(batch, batch, context)
        lines.append((str(batch), _ms(seconds), "-" if share is None else f"{100 * share:.0f} %"))
    title = f"one row per slot at context {context}; memory is read at {known}"
    return _sheet(
        title, "batch", ["ms", "share"], lines, "share: of that rate, which reading weights and cache reaches"
    )


def _contexts(file: CostFile) -> Sheet[Line]:
    slots, rows, contexts = _axes(file)
    lines = []
    for batch in slots:
        for count in dict.fromkeys((rows[0], rows[-1])):
            cells = [_ms(file.target.forward_s(batch, batch * count, context)) for context in contexts]
            lines.append((f"{batch}, {count}", *cells))
    return _sheet("forward by context, ms", "batch, rows per slot", contexts, lines)


def _drafts(file: CostFile) -> list[Sheet[Line]]:
    _, _, contexts = _axes(file)
    return [_draft(file, label, costs, _middle(contexts)) for label, costs in file.drafts.items()]


def _draft(file: CostFile, label: str, costs: MeasuredDraftCosts, context: float) -> Sheet[Line]:
    slots, nodes = (tuple(map(int, points)) for points in costs.propose.axes.values())
    lines = []
    for batch in slots:
        plain = file.target.forward_s(batch, batch, context)
        seconds = [costs.propose_s(batch, batch * count, count) for count in nodes]
        lines.append((str(batch), *[_ratio(each, plain) for each in seconds]))
    legend = "0.12 (0.05): ms, and how many plain forwards that is"
    return _sheet(f"{label}: ms a step, by nodes per slot", "batch", nodes, lines, legend)


def _around(file: CostFile) -> Sheet[Line]:
    slots, rows, _ = _axes(file)
    few, many = rows[0], rows[-1]
    heads = [f"accept {count}, {kind}" for count in dict.fromkeys((few, many)) for kind in ("greedy", "sampled")]
    lines = []
    for batch in slots:
        cells = [
            _ms(file.target.accept_s(batch, batch * count, greedy))
            for count in dict.fromkeys((few, many))
            for greedy in (True, False)
        ]
        lines.append((str(batch), *cells, _ms(file.target.rest_s(batch))))
    legend = "accept: verifying so many rows; rest: what a step costs besides its forward, draft and verification"
    return _sheet("judging rows per slot, and the rest of a step, ms", "batch", [*heads, "rest"], lines, legend)


def _axes(file: CostFile) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(map(int, points)) for points in file.target.forward.axes.values())


def _middle(points: Sequence[int]) -> int:
    return points[(len(points) - 1) // 2]


def _sheet(
    title: str, first: str, heads: Sequence[object], lines: Sequence[tuple[str, ...]], legend: str = ""
) -> Sheet[Line]:
    """Return a table of which a narrow terminal shows every second point, or the ends."""
    inner = range(2, len(heads))
    turns = {place: turn for turn, place in enumerate((*inner[::2], *inner[1::2]), 1)}
    points: list[Column[Line]] = [
        Column(str(head), itemgetter(place), drop=turns.get(place, 0)) for place, head in enumerate(heads, 1)
    ]
    return Sheet(title, [Column(first, itemgetter(0), kind="name", legend=legend), *points], lines)


def _ratio(seconds: float, one: float) -> str:
    return f"{_ms(seconds)} ({seconds / one:.2f})" if one else _ms(seconds)


def _ms(seconds: float) -> str:
    """Return milliseconds with three digits or so.

    >>> _ms(0.0123), _ms(0.000123), _ms(1.234)
    ('12.3', '0.12', '1234')
    """
    value = seconds * 1000
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"
