"""The suffix index of a session, by slot: requests in order of admission, the corpus on disk, and answers to save.

Example: `SlotIndex(24, 10_000, TextFiles.of("day.corpus", None, target))` looks up the request's own text, earlier
answers and the file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, final

from outrider.errors import ConfigError
from outrider.proposers.corpus.learned import LearnedAnswers
from outrider.proposers.corpus.store import Corpus, Vocabulary
from outrider.proposers.lookup.suffix_index import Mode, Speculation, SuffixCache
from outrider.target import Target

__all__ = ["NO_FILES", "SlotIndex", "TextFiles"]


@dataclass(frozen=True, kw_only=True, eq=False)
class TextFiles:
    """The files of a method that looks texts up.

    corpus      texts to look up, or None
    save        corpus file that answers are merged into, or None
    vocabulary  the target's, where answers are saved
    """

    corpus: Corpus | None = None
    save: Path | None = None
    vocabulary: Vocabulary | None = None

    @classmethod
    def of(cls, corpus: str | None, save: str | None, target: Target) -> Self:
        """Open the files that a method's settings name, for this target.

        Raises:
            CheckpointError: if one cannot be read.
            ConfigError: if one was built with another tokenizer, or its directory is not there.
        """
        if corpus is None and save is None:
            return cls()
        vocabulary = Vocabulary.of(target.spec.vocab_size, target.tokenizer)
        opened = {path: Corpus.open(path) for path in (corpus, save) if path is not None and _is_needed(path, corpus)}
        for one in opened.values():
            one.require(vocabulary)
        return cls(
            corpus=None if corpus is None else opened.get(corpus),
            save=None if save is None else Path(save).absolute(),
            vocabulary=vocabulary,
        )


def _is_needed(path: str, corpus: str | None) -> bool:
    """Return whether a file must be read now; one that is only saved to may come later."""
    if Path(path).exists() or path == corpus:
        return True
    if not Path(path).absolute().parent.is_dir():
        raise ConfigError(f"save={path} lies in a directory that is not there; create it first")
    return False


NO_FILES = TextFiles()


@final
class SlotIndex:
    """Counts of what followed the end of each slot's text: in it, in earlier answers, and in a corpus."""

    def __init__(self, max_depth: int, max_cached_requests: int, files: TextFiles = NO_FILES) -> None:
        self._cache = SuffixCache(max_depth, max_cached_requests, None if files.corpus is None else files.corpus.index)
        self._learned = None
        if files.save is not None and files.vocabulary is not None:
            self._learned = LearnedAnswers(files.save, files.vocabulary)
        self._requests: dict[int, int] = {}
        self._num_requests = 0

    def open(self, slot: int, tokens: Sequence[int]) -> None:
        """Begin a request with its prompt."""
        self._num_requests += 1
        self._requests[slot] = self._num_requests
        self._cache.open(self._num_requests, tokens)

    def append(self, slot: int, tokens: Sequence[int]) -> None:
        """Add committed tokens to the answer in `slot`."""
        self._cache.append(self._requests[slot], tokens)
        if self._learned is not None:
            self._learned.append(self._requests[slot], tokens)

    def speculate(
        self,
        slot: int,
        max_spec_tokens: int,
        factor: float = 1.0,
        offset: float = 0.0,
        min_token_prob: float = 0.1,
        mode: Mode = "path",
    ) -> Speculation:
        """Return the draft with the highest score after the text in `slot`."""
        return self._cache.speculate(self._requests[slot], max_spec_tokens, factor, offset, min_token_prob, mode)

    def close(self, slot: int) -> None:
        """End the request in `slot`; its answer stays for later ones."""
        request = self._requests.pop(slot)
        self._cache.close(request)
        if self._learned is not None:
            self._learned.end(request)

    def clear(self) -> None:
        """Forget earlier answers; those to save are kept for the file."""
        self._cache.clear()

    def save(self) -> None:
        """Merge the answers that ended into the file to save to, if there is one."""
        if self._learned is not None:
            self._learned.save()

    @property
    def num_bytes(self) -> int:
        """Memory of the trees, in bytes; a corpus is mapped from its file, and the system may drop its pages."""
        return self._cache.memory_bytes
