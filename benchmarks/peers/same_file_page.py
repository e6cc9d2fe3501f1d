"""The comparison of engines on the same files as one Markdown page.

First one line per file and number of requests: llama.cpp plain, its fastest speculation, Outrider plain, and Outrider's
fastest method, in tokens per second while decoding. A ratio is paired, over llama.cpp's fastest build that answered.
Then prompts, texts, the cells that Outrider loses, every method, and what ran. Example: plain decoding at 120 beside
80 is 1.50.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, NamedTuple

from figures import ALL, OURS, Row, losses, ratio
from gguf_files import StoredFile
from ledger import Key, Ledger
from page import interval, losing, number, share, table
from rates import PROMPT, TOKENS, Rates
from roster import LLAMA, PLAIN

from outrider.env import version
from outrider.kernels.cpu import isa
from outrider.results.rows import Report
from outrider.results.statistics import Interval
from outrider.results.tables.sheet import Column, Sheet


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The run on one file, its measurements, and their figures."""

    file: StoredFile
    report: Report
    ledger: Ledger
    rows: list[Row]
    rates: Rates


class Line(NamedTuple):
    """One file at a number of requests; the page's first table."""

    compared: Compared
    num_requests: int

    @property
    def plain(self) -> Row | None:
        """Outrider's plain decoding."""
        return self.row(Key(OURS, PLAIN))

    @property
    def best(self) -> Row | None:
        """Outrider's fastest row."""
        return self._fastest(lambda key: key.engine == OURS)

    @property
    def theirs(self) -> Row | None:
        """The plain decoding of llama.cpp's fastest build."""
        return self._fastest(lambda key: key.engine != OURS and key.method == PLAIN)

    @property
    def their_best(self) -> Row | None:
        """llama.cpp's fastest row."""
        return self._fastest(lambda key: key.engine != OURS)

    def row(self, key: Key) -> Row | None:
        return next((row for row in self._rows() if row.key == key), None)

    def over(self, mine: Row | None, theirs: Row | None) -> Interval | None:
        """Return how much faster one row is than another."""
        if mine is None or theirs is None:
            return None
        return ratio(self.compared.ledger, mine.key, theirs.key, self.num_requests)

    def _rows(self) -> list[Row]:
        return [row for row in self.compared.rows if row.num_requests == self.num_requests]

    def _fastest(self, wanted: Callable[[Key], bool]) -> Row | None:
        found = [row for row in self._rows() if wanted(row.key) and rate_of(row) is not None]
        return max(found, key=lambda row: rate_of(row) or 0.0, default=None)


def same_file_page(compared: list[Compared], settings: dict[str, Any]) -> str:
    """Return the whole page."""
    commits = dict.fromkeys(str(one.report.commit or "unknown")[:7] for one in compared)
    ran = f" Outrider {version()}, commit {' and '.join(commits)}, integer kernels {isa.chosen()}."
    parts = [
        "# The same file",
        "This page compares Outrider and llama.cpp on the same GGUF files and prompts, one engine at a time, "
        "interleaved prompt by prompt; `benchmarks/peers/same_file.py` measured this page and wrote it.",
        f"Greedy decoding, at most {settings['max_new_tokens']} new tokens, natural end of text, "
        f"{settings['threads']} threads, draft model: {settings['draft']}. {settings['machine']}.{ran}",
        "## Decoding",
        decoding_sheet(compared).markdown,
        "## Where Outrider loses",
        lost_text(compared),
        "## Prompts",
        prompt_sheet(compared).markdown,
        "## Texts",
        text_sheet(compared).markdown,
        "## Files",
        file_sheet(compared).markdown,
    ]
    for one in compared:
        parts += [f"## Every method on {one.file.name}", _every(one)]
    return "\n\n".join([*parts, "## What ran", _ran(compared)])


def decoding_sheet(compared: list[Compared]) -> Sheet[Line]:
    """Return the first table."""
    builds = list(dict.fromkeys([LLAMA, *(row.key.engine for one in compared for row in one.rows)]))
    columns: list[Column[Line]] = [
        Column("requests", lambda line: str(line.num_requests)),
        Column("file", lambda line: line.compared.file.name, kind="name"),
    ]
    for name in builds:
        if name != OURS:
            columns += [
                Column(f"{name} plain", lambda line, name=name: _cell(line, Key(name, PLAIN))),
                Column(f"{name} {TOKENS}", lambda line, name=name: _rate(line, name)),
            ]
    columns += [
        Column("llama.cpp best", lambda line: _named(line.their_best)),
        Column("Outrider plain", lambda line: _cell(line, Key(OURS, PLAIN))),
        Column("Outrider best", lambda line: _named(line.best)),
        Column("plain / plain", lambda line: interval(line.over(line.plain, line.theirs))),
        Column("best / plain", lambda line: interval(line.over(line.best, line.theirs))),
        Column(
            "best / best",
            lambda line: interval(line.over(line.best, line.their_best)),
            legend=(
                f"tokens per second while decoding; {TOKENS}: `llama-bench`, token by token; best: the fastest method; "
                "ratios: Outrider's over llama.cpp's fastest build, paired, in brackets the 95 % interval over prompts"
            ),
        ),
    ]
    return Sheet("decoding", columns, list(lines_of(compared)))


def lines_of(compared: list[Compared]) -> Iterator[Line]:
    """Return the lines of the first table, by number of requests."""
    for num_requests in sorted({row.num_requests for one in compared for row in one.rows}):
        yield from (Line(one, num_requests) for one in compared)


def prompt_sheet(compared: list[Compared]) -> Sheet[Compared]:
    """Return the table of prompts of 512 tokens."""
    builds = list(dict.fromkeys(name for one in compared for name in one.rates if name != OURS))
    columns: list[Column[Compared]] = [Column("file", lambda one: one.file.name, kind="name")]
    columns += [
        Column(f"{name} {PROMPT}", lambda one, name=name: _median(one.rates, name, PROMPT)[1]) for name in builds
    ]
    columns += [
        Column("Outrider", lambda one: _median(one.rates, OURS, PROMPT)[1]),
        Column(
            "Outrider / fastest",
            lambda one: _prompt_ratio(one, builds),
            legend="a prompt of 512 tokens, tokens per second, medians; llama.cpp's by `llama-bench`",
        ),
    ]
    return Sheet("prompts", columns, compared)


def text_sheet(compared: list[Compared]) -> Sheet[Line]:
    """Return whether methods wrote the text of plain decoding, and how far the engines agree."""
    return Sheet(
        "texts",
        [
            Column("requests", lambda line: str(line.num_requests)),
            Column("file", lambda line: line.compared.file.name, kind="name"),
            Column("Outrider's methods, same text", _own_texts),
            Column("llama.cpp plain, same text", lambda line: share(line.theirs.same_text) if line.theirs else ""),
            Column(
                "leading tokens alike",
                lambda line: number(line.theirs.num_agreeing) if line.theirs else "",
                legend=(
                    "against Outrider's plain decoding of the same prompts: the share of equal answers, and the mean "
                    "number of leading tokens that are equal; engines round differently, and a near tie then flips"
                ),
            ),
        ],
        list(lines_of(compared)),
    )


def file_sheet(compared: list[Compared]) -> Sheet[Compared]:
    return Sheet(
        "files",
        [
            Column("file", lambda one: one.file.name, kind="name"),
            Column("name", lambda one: one.file.path.name, kind="code"),
            Column("MB", lambda one: f"{one.file.path.stat().st_size / 1e6:.0f}"),
            Column("origin", lambda one: one.file.origin, kind="text"),
        ],
        compared,
    )


def lost_text(compared: list[Compared]) -> str:
    """Return the cells in which llama.cpp is faster: plain beside plain, any row beside our best, and prompts."""
    found = []
    for line in lines_of(compared):
        mine, theirs = line.plain, line.theirs
        over = line.over(mine, theirs)
        if over is not None and over.point < 1:
            found.append(
                f"- {_place(line)}: plain decoding is {interval(over)} of {theirs.key.engine if theirs else ''}'s."
            )
    for one in compared:
        builds = [name for name in one.rates if name != OURS]
        if (text := _prompt_ratio(one, builds)) and float(text) < 1:
            found.append(f"- {one.file.name}: prompts of 512 tokens run at {text} of the faster build's speed.")
        if lost := losses(one.rows):
            found.append(f"- {one.file.name}, against our fastest method:\n\n{losing(lost)}\n")
    return "\n".join(found) if found else "In no cell that was measured."


def document(compared: list[Compared], settings: dict[str, Any]) -> dict[str, Any]:
    """Return all figures, for a program."""
    return {
        "schema": "outrider.same-file/1",
        **settings,
        "files": [
            {
                "file": one.file.name,
                "rows": [{**asdict(row), "key": row.key._asdict()} for row in one.rows],
                "rates": one.rates,
                "failures": [{**key._asdict(), "reason": reason} for key, reason in one.ledger.failures.items()],
            }
            for one in compared
        ],
    }


def rate_of(row: Row) -> float | None:
    """Return tokens per second over all prompts of a row."""
    return row.decoding.get(ALL, next(iter(row.decoding.values())))


def _every(one: Compared) -> str:
    known = list(dict.fromkeys(key for key, _ in one.ledger.measurements))
    rows = sorted(one.rows, key=lambda row: (row.num_requests, known.index(row.key)))
    return table(rows, {key: reason for key, reason in one.ledger.failures.items() if key not in known})


def _ran(compared: list[Compared]) -> str:
    """Return the notes of the runs, each once."""
    notes = dict.fromkeys(note for one in compared for note in one.report.notes)
    return "\n".join(f"- {note}" for note in notes)


def _cell(line: Line, key: Key) -> str:
    row = line.row(key)
    if row is not None:
        return number(rate_of(row))
    reason = line.compared.ledger.failures.get(key)
    return "not measured" if reason is None else "crashed" if "crashed" in reason else "did not run"


def _rate(line: Line, engine: str) -> str:
    return _median(line.compared.rates, engine, TOKENS)[1] if line.num_requests == 1 else ""


def _median(rates: Rates, engine: str, test: str) -> tuple[float | None, str]:
    found = rates.get(engine, {}).get(test)
    if not found:
        return None, ""
    if isinstance(found, str):
        return None, "crashed" if "crashed" in found else "did not run"
    return median(found), number(median(found))


def _prompt_ratio(one: Compared, builds: list[str]) -> str:
    ours = _median(one.rates, OURS, PROMPT)[0]
    theirs = [rate for name in builds if (rate := _median(one.rates, name, PROMPT)[0]) is not None]
    return f"{ours / max(theirs):.2f}" if ours and theirs else ""


def _named(row: Row | None) -> str:
    return "" if row is None else f"{number(rate_of(row))} ({row.key.method})"


def _own_texts(line: Line) -> str:
    found = [
        row.same_text for row in line.compared.rows if row.key.engine == OURS and row.num_requests == line.num_requests
    ]
    known = [one for one in found if one is not None]
    return share(min(known)) if known else ""


def _place(line: Line) -> str:
    return f"{line.compared.file.name}, {line.num_requests} request{'s' if line.num_requests > 1 else ''}"
