"""How far a long command has come, as it tells a listener; `outrider.cli.terminal` shows it.

Example: `listen(Progress(3, 12, "chat"))` moves a bar, or prints `3/12 chat`.
"""

from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Listener", "Progress", "unheard"]


class Progress(NamedTuple):
    """Units done, of how many (None: unknown), and what is being done now."""

    done: float
    total: float | None
    words: str


Listener = Callable[[Progress], None]


def unheard(progress: Progress) -> None:
    """Ignore the progress: the default listener."""
