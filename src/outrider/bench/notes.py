"""Notes on a run for whoever reads its results, above all on what was left out and why.

Example: `with notes.leaving_out("mtp", ConfigError): load()` adds "left out: mtp, for <the error's sentence>" if
`load()` raises a ConfigError, and goes on.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

from outrider.errors import OutriderError

__all__ = ["Notes"]


@final
class Notes:
    """Collects notes in order.

    texts    the notes
    errors   errors of what was left out
    """

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)
        self.errors: list[OutriderError] = []

    @contextmanager
    def leaving_out(self, label: str, *excused: type[OutriderError]) -> Iterator[None]:
        """Turn an error of an `excused` type into a note that `label` is left out."""
        try:
            yield
        except excused as error:
            self.errors.append(error)
            self.texts.append(f"left out: {label}, for {error}")
