"""Tables of serving engines: what a user of the server feels, and each engine beside the others.

One table per engine, batch and temperature. Its baseline is the engine's own plain decoding:

    tok/s        decoded tokens per second, all requests together, while any answer was behind its first tokens
    tau, length  tokens per target forward over all steps; tokens per step that had a draft (vLLM's own figure)
    accepted     share of drafts accepted to depth 1, 2, 3
    ttft, tpot   milliseconds to the first token (p50/p95), and per token after it (p50/p95/p99)
    equal        greedy answers that equal plain decoding's, of all compared

Where several engines ran the same cells, one more table has them side by side, as pairs of tok/s and speedup.

Example of a cell of the latter: `101.3 (1.92x)`.
"""

from collections.abc import Sequence
from typing import NamedTuple

from outrider.results.rows import PLAIN, SERVING, Row
from outrider.results.statistics import Percentiles
from outrider.results.tables.sheet import Sheet, by_category, interval_text, number_text, style_of

__all__ = ["serving_sheets"]

HEAD = (
    "category",
    "method",
    "tok/s",
    "e2e tok/s",
    "tau",
    "length",
    "accepted",
    "speedup",
    "e2e",
    "ttft ms",
    "tpot ms",
    "equal",
)
DROPS = ("length", "accepted", "e2e", "e2e tok/s", "tpot ms", "ttft ms", "tau", "tok/s")
LEGEND = (
    (("tok/s",), "tok/s: of all requests together"),
    (("e2e tok/s", "e2e"), "e2e: prompts included"),
    (("tau",), "tau: tokens per target forward"),
    (("length",), "length: tokens per step with a draft"),
    (("accepted",), "accepted: share of drafts accepted to depth 1, 2, 3"),
    (("speedup",), "speedup: over the engine's own plain decoding, with its 95 % interval"),
    (("ttft ms",), "ttft: to the first token, p50/p95"),
    (("tpot ms",), "tpot: per token after it, p50/p95/p99"),
    (("equal",), "equal: greedy answers that equal plain decoding's"),
)
ENGINES = ("outrider", *SERVING)


class _Key(NamedTuple):
    batch: int
    temperature: float

    @classmethod
    def of(cls, row: Row) -> "_Key":
        return cls(row.batch, row.temperature)


def serving_sheets(rows: Sequence[Row]) -> list[Sheet]:
    """The tables of serving engines; none where none ran."""
    served = [row for row in rows if row.engine in SERVING]
    places = dict.fromkeys((row.engine, _Key.of(row)) for row in served)
    sheets = [_sheet(engine, key, served) for engine, key in places]
    shared = [row for row in rows if row.engine in ENGINES and row.state == "cold"]
    if served and len({row.engine for row in shared}) > 1:
        sheets += [_beside(key, shared) for key in dict.fromkeys(map(_Key.of, served))]
    return sheets


def _sheet(engine: str, key: _Key, rows: Sequence[Row]) -> Sheet:
    members = by_category([row for row in rows if row.engine == engine and _Key.of(row) == key])
    return Sheet(
        title=f"{engine}, {key.batch} at a time, temperature {key.temperature:g}",
        head=HEAD,
        lines=tuple(_line(row) for row in members),
        styles=tuple(style_of(row) for row in members),
        legend=LEGEND,
        drops=DROPS,
    )


def _line(row: Row) -> tuple[str, ...]:
    is_baseline = row.method == PLAIN
    end_to_end = None if row.speedup_end_to_end is None else row.speedup_end_to_end.point
    return (
        row.category,
        row.label,
        number_text(row.tokens_per_s, ".1f"),
        number_text(row.tokens_per_s_end_to_end, ".1f"),
        number_text(row.tau, ".2f"),
        number_text(row.mean_acceptance_length, ".2f"),
        " ".join(f"{share:.2f}" for share in (row.acceptance_per_pos or ())[:3]) or "-",
        "1 (baseline)" if is_baseline else interval_text(row.speedup),
        "1" if is_baseline else number_text(end_to_end, ".2f"),
        _milliseconds(row.ttft_s, ("p50", "p95")),
        _milliseconds(row.tpot_s, ("p50", "p95", "p99")),
        "-" if row.equality is None else f"{row.equality.num_equal} of {row.equality.num_answers}",
    )


def _milliseconds(seconds: Percentiles | None, names: Sequence[str]) -> str:
    if seconds is None:
        return "-"
    return "/".join(f"{1000 * getattr(seconds, name):.1f}" for name in names)


def _beside(key: _Key, rows: Sequence[Row]) -> Sheet:
    members = by_category([row for row in rows if _Key.of(row) == key])
    engines = [engine for engine in ENGINES if any(row.engine == engine for row in members)]
    cells = {(row.engine, row.category, row.label): row for row in members}
    names = dict.fromkeys((row.category, row.label) for row in members)
    lines = [
        (category, label, *(_pair(cells.get((engine, category, label))) for engine in engines))
        for category, label in names
    ]
    return Sheet(
        title=f"engines side by side, batch {key.batch}, temperature {key.temperature:g}: tok/s (speedup over its own "
        "plain decoding)",
        head=("category", "method", *engines),
        lines=tuple(lines),
        styles=("",) * len(lines),
    )


def _pair(row: Row | None) -> str:
    if row is None:
        return "-"
    times = "" if row.speedup is None or row.method == PLAIN else f" ({row.speedup.point:.2f}x)"
    return f"{number_text(row.tokens_per_s, '.1f')}{times}"
