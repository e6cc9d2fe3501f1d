"""Tables of serving engines: what a user of the server feels, and each engine beside the others.

One table per engine, batch and temperature. Its baseline is the engine's own plain decoding:

    tok/s        decoded tokens per second, all requests together, while any answer was behind its first tokens
    length       tokens per step that had a draft: vLLM's own figure

Where several engines ran the same cells, one more table has them side by side, as pairs of tok/s and speedup.

Example of a cell of the latter: `101.3 (1.92x)`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

from outrider.results.rows import PLAIN, SERVING, Row
from outrider.results.statistics import Percentiles
from outrider.results.tables.cells import (
    CATEGORY,
    METHOD,
    accepted_text,
    by_category,
    end_to_end_text,
    number_text,
    rate_text,
    speedup_text,
    style_of,
)
from outrider.results.tables.sheet import Column, Sheet

__all__ = ["serving_sheets"]

ENGINES = ("outrider", *SERVING)


class _Key(NamedTuple):
    batch: int
    temperature: float

    @classmethod
    def of(cls, row: Row) -> "_Key":
        return cls(row.batch, row.temperature)


def serving_sheets(rows: Sequence[Row]) -> list[Sheet[Any]]:
    """Return the tables of serving engines; none where none ran."""
    served = [row for row in rows if row.engine in SERVING]
    places = dict.fromkeys((row.engine, _Key.of(row)) for row in served)
    sheets: list[Sheet[Any]] = [_sheet(engine, key, served) for engine, key in places]
    shared = [row for row in rows if row.engine in ENGINES and row.state == "cold"]
    if served and len({row.engine for row in shared}) > 1:
        sheets += [_beside(key, shared) for key in dict.fromkeys(map(_Key.of, served))]
    return sheets


def _sheet(engine: str, key: _Key, rows: Sequence[Row]) -> Sheet[Row]:
    members = by_category([row for row in rows if row.engine == engine and _Key.of(row) == key])
    return Sheet(f"{engine}, {key.batch} at a time, temperature {key.temperature:g}", SERVED, members, style_of)


def _beside(key: _Key, rows: Sequence[Row]) -> Sheet[tuple[str, str]]:
    members = by_category([row for row in rows if _Key.of(row) == key])
    engines = [engine for engine in ENGINES if any(row.engine == engine for row in members)]
    cells = {(row.engine, row.category, row.label): row for row in members}
    columns: list[Column[tuple[str, str]]] = [
        Column("category", itemgetter(0), kind="name"),
        Column("method", itemgetter(1), kind="name"),
        *(Column(engine, partial(_pair, cells, engine)) for engine in engines),
    ]
    title = (
        f"engines side by side, batch {key.batch}, temperature {key.temperature:g}: tok/s (speedup over its own plain "
        "decoding)"
    )
    return Sheet(title, columns, list(dict.fromkeys((row.category, row.label) for row in members)))


def _pair(cells: Mapping[tuple[str, str, str], Row], engine: str, name: tuple[str, str]) -> str:
    row = cells.get((engine, *name))
    if row is None:
        return "-"
    times = "" if row.speedup is None or row.method == PLAIN else f" ({row.speedup.point:.2f}x)"
    return f"{rate_text(row)}{times}"


def _milliseconds(seconds: Percentiles | None, *names: str) -> str:
    if seconds is None:
        return "-"
    return "/".join(f"{1000 * getattr(seconds, name):.1f}" for name in names)


def _equal(row: Row) -> str:
    return "-" if row.equality is None else f"{row.equality.num_equal} of {row.equality.num_answers}"


SERVED: tuple[Column[Row], ...] = (
    CATEGORY,
    METHOD,
    Column("tok/s", rate_text, drop=8, legend="tok/s: of all requests together"),
    Column(
        "e2e tok/s",
        lambda row: number_text(row.tokens_per_s_end_to_end, ".1f"),
        drop=4,
        legend="e2e: prompts included",
    ),
    Column("tau", lambda row: number_text(row.tau), drop=7, legend="tau: tokens per target forward"),
    Column(
        "length",
        lambda row: number_text(row.mean_acceptance_length),
        drop=1,
        legend="length: tokens per step with a draft",
    ),
    Column("accepted", accepted_text, drop=2, legend="accepted: share of drafts accepted to depth 1, 2, 3"),
    Column(
        "speedup",
        speedup_text,
        legend="speedup: over the engine's own plain decoding, with its 95 % interval",
    ),
    Column("e2e", end_to_end_text, drop=3, legend="e2e: prompts included"),
    Column(
        "ttft ms",
        lambda row: _milliseconds(row.ttft_s, "p50", "p95"),
        drop=6,
        legend="ttft: to the first token, p50/p95",
    ),
    Column(
        "tpot ms",
        lambda row: _milliseconds(row.tpot_s, "p50", "p95", "p99"),
        drop=5,
        legend="tpot: per token after it, p50/p95/p99",
    ),
    Column("equal", _equal, legend="equal: greedy answers that equal plain decoding's"),
)
