"""Progress of a long command, passed to a listener such as the bar of `outrider.cli.terminal`.

Example: `listen(Progress(3, 12, "chat"))` moves a bar, or prints `3/12 chat`.
"""

from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Listener", "Progress", "unheard"]


class Progress(NamedTuple):
    """Units done, total units (None: unknown), and words for the work in progress."""

    done: float
    total: float | None
    words: str


Listener = Callable[[Progress], None]


def unheard(progress: Progress) -> None:
    """Ignore the progress: the default listener."""
