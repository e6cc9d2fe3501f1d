"""Output: a terminal gets colours, a bar and tables that fit; a pipe gets plain lines and one line of JSON.

    NO_COLOR set, or TERM=dumb   no escape sequences anywhere, so no bar either
    FORCE_COLOR set              colours in a pipe too (0 and false mean no); a bar is for terminals alone

A character that the console lacks is replaced and never ends a run: `…` by `...` on an ASCII console, others by their
escape.

Example: `with progress() as bar: bar.show(3, 12, "chat")` moves a bar, or prints `3/12 chat` on standard error now and
then.
"""

import codecs
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Protocol, TextIO, final

from outrider.records.display import visible, visible_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

__all__ = ["Bar", "console", "end_with", "is_styled", "prepare_streams", "progress"]

SECONDS_BETWEEN_LINES = 30.0
PIPE_WIDTH = 4000
"""Columns of what is no terminal: nothing has to be left out there."""
HANDLER = "outrider.fallback"
FALLBACKS = {
    **dict.fromkeys("─━╸╺╶╴—–−‐", "-"),
    **dict.fromkeys("│┃║", "|"),
    **dict.fromkeys("╭╮╰╯┼├┤┬┴", "+"),
    **dict.fromkeys("•·", "*"),
    **dict.fromkeys("‘’", "'"),
    **dict.fromkeys("“”", '"'),
    "…": "...",
    "×": "x",
    "≤": "<=",
    "≥": ">=",
    "→": "->",
}


class Bar(Protocol):
    """Shows where a command stands."""

    def show(self, done: float, total: float | None, words: str) -> None:
        """Say how much is done, and what is being done."""

    def say(self, sentence: str) -> None:
        """Print a line above the bar."""


def prepare_streams() -> None:
    """Give missing streams a place, and let no character end the command."""
    codecs.register_error(HANDLER, _fallback)
    if sys.stdin is None:
        sys.stdin = io.StringIO()
    sys.stdout, sys.stderr = _prepared(sys.stdout), _prepared(sys.stderr)


def is_styled(stream: TextIO) -> bool:
    """Return whether the stream takes escape sequences."""
    if os.environ.get("NO_COLOR"):
        return False
    if forced := os.environ.get("FORCE_COLOR", ""):
        return forced.lower() not in ("0", "false")
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def console(stream: TextIO) -> "Console":
    """Return rich's console for a stream: as wide as the terminal, or as wide as needed; text is never markup."""
    from rich.console import Console

    styled = is_styled(stream)
    return Console(
        file=stream,
        width=None if stream.isatty() else PIPE_WIDTH,
        force_terminal=styled,
        color_system="auto" if styled else None,
        highlight=False,
        markup=False,
        emoji=False,
    )


def end_with(json: str, place: str) -> None:
    """Print the result that ends standard output: JSON for a program, or in `place` words for a person."""
    if not sys.stdout.isatty():
        print(json)
    elif place:
        print(visible_line(place))
    sys.stdout.flush()


@contextmanager
def progress(*, is_quiet: bool = False) -> Iterator[Bar]:
    """Show a bar on standard error where that is a terminal, else a line now and then."""
    if is_quiet:
        yield _Quiet()
        return
    if not (sys.stderr.isatty() and is_styled(sys.stderr)):
        yield _Lines()
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    text = TextColumn("{task.description}", markup=False)
    columns = (BarColumn(bar_width=16), TextColumn("{task.fields[count]}", markup=False), TimeRemainingColumn(), text)
    with Progress(*columns, console=console(sys.stderr), transient=True) as bar:
        yield _Live(bar)


@final
class _Live:
    def __init__(self, bar: "Progress") -> None:
        self._bar = bar
        self._task = bar.add_task("loading", total=None, count="")

    def show(self, done: float, total: float | None, words: str) -> None:
        self._bar.update(
            self._task, completed=done, total=total, description=visible_line(words), count=_count(done, total)
        )

    def say(self, sentence: str) -> None:
        self._bar.console.print(visible(sentence), soft_wrap=True)


@final
class _Lines:
    def __init__(self) -> None:
        self._last: float | None = None

    def show(self, done: float, total: float | None, words: str) -> None:
        is_due = self._last is None or monotonic() - self._last > SECONDS_BETWEEN_LINES
        if is_due or done == total:
            self._last = monotonic()
            self.say(f"{_count(done, total)} {words}".strip())

    def say(self, sentence: str) -> None:
        print(visible_line(sentence), file=sys.stderr, flush=True)


@final
class _Quiet:
    def show(self, done: float, total: float | None, words: str) -> None:
        return

    def say(self, sentence: str) -> None:
        return


def _count(done: float, total: float | None) -> str:
    return "" if total is None else f"{done:.0f}/{total:.0f}"


def _prepared(stream: TextIO | None) -> TextIO:
    if stream is None:  # closed by whoever started us
        return Path(os.devnull).open("w", encoding="utf-8")
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors=HANDLER)
    return stream


def _fallback(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(FALLBACKS.get(one) or _escaped(one) for one in text), error.end


def _escaped(character: str) -> str:
    return character.encode("ascii", "backslashreplace").decode("ascii")
