"""The figures as one Markdown page: the table, the cells that Outrider loses, and what ran.

In the table `*` marks a peer's figure above every one of ours in the same column and at the same number of requests.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict
from operator import itemgetter
from typing import Any

from figures import ALL, OURS, Loss, Row, losses
from ledger import Identity, Key

from outrider.results.statistics import Interval
from outrider.results.tables.sheet import Column, Sheet


def page(
    rows: list[Row],
    identities: dict[Key, Identity],
    failures: dict[Key, str],
    settings: dict[str, Any],
    order: list[Key],
) -> str:
    """Return the whole page."""
    rows = sorted(rows, key=lambda row: (row.num_requests, order.index(row.key)))
    lost = losses(rows)
    measured = {row.key for row in rows}
    missing = {key: failures.get(key, "not measured yet") for key in order if key not in measured}
    return "\n\n".join(
        [
            f"Greedy decoding, at most {settings['max_new_tokens']} new tokens, natural end of text, "
            f"{settings['threads']} threads, draft model: {settings['draft']}. {settings['machine']}.",
            table(rows, missing),
            f"`*` is faster than every method of {OURS.capitalize()} in that column and at that number of requests.",
            "### Cells that Outrider loses\n\n" + (losing(lost) if lost else "None of those measured."),
            "### What ran\n\n" + identity_table(identities, order),
        ]
    )


def table(rows: list[Row], missing: dict[Key, str]) -> str:
    categories = list(dict.fromkeys(name for row in rows for name in row.decoding if name != ALL))
    columns = [*categories, ALL]
    head = ["requests", "engine", "method", *[f"{name}, tok/s" for name in columns]]
    head += [
        "x Outrider plain",
        "x own plain",
        "end to end, tok/s",
        "x Outrider plain",
        "same text",
        "same as own",
        "ended",
    ]
    best, lines = _best(rows), list[list[str]]()
    for row in rows:
        lines.append(
            [
                str(row.num_requests),
                row.key.engine,
                row.key.method,
                *[_marked(row, name, best) for name in columns],
                interval(row.to_ours),
                interval(row.to_own),
                number(row.end_to_end.get(ALL, next(iter(row.end_to_end.values())))),
                interval(row.to_ours_end_to_end),
                share(row.same_text),
                share(row.same_own),
                f"{row.num_ended}/{row.num_answers}",
            ]
        )
    for key, reason in missing.items():
        lines.append(["", key.engine, key.method, f"did not run: {reason}".replace("|", "/"), *[""] * (len(head) - 4)])
    return _markdown(head, lines, ("engine", "method"))


def losing(lost: list[Loss]) -> str:
    head = ["requests", "category", "faster", "tok/s", "our best", "tok/s", "ours / theirs"]
    body = [
        [
            str(loss.num_requests),
            loss.category,
            " ".join(loss.winner),
            number(loss.winner_rate),
            loss.ours.method,
            number(loss.our_rate),
            f"{loss.our_rate / loss.winner_rate:.2f}",
        ]
        for loss in lost
    ]
    return _markdown(head, body, ("category", "faster", "our best"))


def identity_table(identities: dict[Key, Identity], order: list[Key]) -> str:
    head = ["engine", "method", "version", "dtype", "notes", "settings"]
    body = [[key.engine, key.method, *asdict(identities[key]).values()] for key in order if key in identities]
    return _markdown(head, body, head)


def _best(rows: list[Row]) -> dict[tuple[int, str], float]:
    """Return our fastest figure in each column."""
    best: dict[tuple[int, str], float] = {}
    for row in rows:
        for name, rate in row.decoding.items():
            if row.key.engine == OURS and rate is not None:
                best[row.num_requests, name] = max(rate, best.get((row.num_requests, name), 0.0))
    return best


def _marked(row: Row, name: str, best: dict[tuple[int, str], float]) -> str:
    rate = row.decoding.get(name)
    wins = rate is not None and row.key.engine != OURS and rate > best.get((row.num_requests, name), rate)
    return number(rate) + ("*" if wins else "")


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def interval(found: Interval | None) -> str:
    if found is None:
        return ""
    return f"{found.point:.2f}" if found.low is None else f"{found.point:.2f} ({found.low:.2f} to {found.high:.2f})"


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]], words: Collection[str]) -> str:
    """Return a table; columns of words are aligned left."""
    columns: list[Column[Sequence[str]]] = [
        Column(name, itemgetter(place), kind="raw" if name in words else "number") for place, name in enumerate(head)
    ]
    return Sheet("", columns, body).markdown
