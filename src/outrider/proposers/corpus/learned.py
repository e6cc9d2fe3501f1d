"""Answers kept for the next process: they are merged into a corpus file when a session ends.

Example: `suffix:corpus=day.corpus,save=day.corpus` starts with what earlier processes wrote, and adds what it writes
itself when the program ends. A process that is killed adds nothing and damages nothing.
"""

import logging
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Final, final

from outrider.errors import OutriderError
from outrider.proposers.corpus.store import Vocabulary, merge_into

__all__ = ["MOST_LEARNED", "LearnedAnswers"]

log = logging.getLogger(__name__)
MOST_LEARNED: Final = 1 << 23
"""Tokens of a file that answers are saved to, 64 MiB: the oldest answers go first."""


@final
class LearnedAnswers:
    """The answers of one session; what was not saved is saved when this object is dropped, or when Python exits."""

    def __init__(self, path: Path, vocabulary: Vocabulary) -> None:
        self._open: dict[int, list[int]] = {}
        self._finished: list[list[int]] = []
        self._path, self._vocabulary = path, vocabulary
        weakref.finalize(self, _save, path, self._finished, vocabulary)

    def append(self, request: int, tokens: Sequence[int]) -> None:
        """Add tokens to the answer of a request."""
        self._open.setdefault(request, []).extend(tokens)

    def end(self, request: int) -> None:
        """Keep the answer of a request that ended."""
        if answer := self._open.pop(request, None):
            self._finished.append(answer)

    def save(self) -> None:
        """Merge the answers that ended into the file."""
        _save(self._path, self._finished, self._vocabulary)


def _save(path: Path, answers: list[list[int]], vocabulary: Vocabulary) -> None:
    if not any(answers):
        return
    try:
        merge_into(path, answers, vocabulary, MOST_LEARNED)
        log.info("%d answers are saved in %s", len(answers), path)
        answers.clear()
    except (OutriderError, OSError, MemoryError) as error:
        log.warning("the answers of this run are not saved: %s", error)
