"""Corpus files: documents as token ids with their suffix array, in one safetensors file that is mapped, not read.

    metadata   {"outrider_corpus": "1", "depth": "64", "vocab_size": "49152", "vocabulary": hash, "crc32": ...}
    tokens     [N] int32: the documents, oldest first, each followed by -1
    suffixes   [N] int32: the order of all suffixes by their first `depth` tokens

A file opens in milliseconds whatever its size; the system reads the pages that lookups touch, shares them between
processes and may drop them again. A file is replaced as a whole, so whoever has the old one open keeps it. Damaged
content cannot do more than draft badly (`index.py`); `Corpus.check` finds it by its checksum.

Example: `Corpus.open("project.corpus").num_documents`.
"""

import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, final

import numpy as np
import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from outrider.errors import CheckpointError, ConfigError
from outrider.kernels.compiled import Int32Array
from outrider.proposers.corpus.index import CorpusIndex
from outrider.proposers.corpus.order import SEPARATOR, suffix_order
from outrider.records.files import replacing, writing
from outrider.records.progress import Listener, unheard

__all__ = ["DEPTH", "MOST_TOKENS", "Corpus", "Vocabulary", "joined", "merge_into", "write_corpus"]

VERSION: Final = "1"
KEY: Final = "outrider_corpus"
DEPTH: Final = 64
"""Tokens by which suffixes are sorted: a match and its draft together."""
MOST_TOKENS: Final = 2**31 - 2**20


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The vocabulary that a corpus was written with.

    size      number of ids, as the target's config states it
    digest    hash of the tokenizer's tokens and ids; empty where it is not known
    """

    size: int
    digest: str

    @classmethod
    def of(cls, size: int, tokenizer: Any) -> Self:
        """Describe the vocabulary of a target; the tokenizer may be None."""
        if tokenizer is None:
            return cls(size=size, digest="")
        listed = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=True)
        return cls(size=size, digest=f"{zlib.crc32(listed.encode()):08x}")

    def fits(self, other: "Vocabulary") -> bool:
        """Check whether ids mean the same, as far as both are known."""
        return self.size == other.size and (self.digest == other.digest or not (self.digest and other.digest))


@final
class Corpus:
    """An open corpus file."""

    def __init__(self, path: Path, vocabulary: Vocabulary, checksum: int, index: CorpusIndex) -> None:
        self.path = path
        self.vocabulary = vocabulary
        self.checksum = checksum
        self.index = index

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Map a corpus file.

        Raises:
            CheckpointError: if there is none, or if it is of another kind or version, cut short or malformed.
        """
        path = Path(path)
        if not path.is_file():
            raise CheckpointError(
                f"{path} is no corpus file; build one with outrider corpus build FILES --output {path}"
            )
        try:
            with safe_open(path, framework="pt") as file:
                facts = file.metadata() or {}
                if facts.get(KEY) != VERSION:
                    raise CheckpointError(
                        f"{path} is no corpus of version {VERSION}; build it anew with outrider corpus build"
                    )
                # without a copy: tensors of this framework are views of the mapped file
                tokens, suffixes = file.get_tensor("tokens"), file.get_tensor("suffixes")
            if not (tokens.dtype == suffixes.dtype == torch.int32 and tokens.shape == suffixes.shape == (len(tokens),)):
                raise CheckpointError(f"{path} is damaged: its tensors have other shapes or types; build it anew")
            depth, size = int(facts["depth"]), int(facts["vocab_size"])
            if not (2 <= depth <= 2**16 and 1 <= size < 2**31):
                raise ValueError
            vocabulary = Vocabulary(size=size, digest=facts["vocabulary"])
            index = CorpusIndex(tokens.numpy(), suffixes.numpy(), depth, size)
            return cls(path, vocabulary, int(facts["crc32"], 16), index)
        except (SafetensorError, OSError, KeyError, ValueError, TypeError, IndexError) as error:
            raise CheckpointError(f"{path} is damaged and cannot be read as a corpus; build it anew") from error

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""
        return len(self.index.tokens_N) - self.num_documents

    @property
    def num_documents(self) -> int:
        """Documents in the file."""
        return int(np.count_nonzero(self.index.tokens_N == SEPARATOR))

    def check(self) -> bool:
        """Read the whole file and compare its checksum."""
        return _checksum(self.vocabulary, self.index) == self.checksum

    def documents(self) -> list[Int32Array]:
        """Return the token ids of each document, oldest first, without a copy."""
        tokens_N = self.index.tokens_N
        ends = np.flatnonzero(tokens_N == SEPARATOR)
        starts = np.concatenate([np.zeros(1, np.int64), ends + 1])[: len(ends)]  # a damaged file may hold no end
        return [tokens_N[start:end] for start, end in zip(starts, ends, strict=True)]

    def require(self, vocabulary: Vocabulary) -> None:
        """Refuse a target with another vocabulary.

        Raises:
            ConfigError: if ids mean other tokens there.
        """
        if not self.vocabulary.fits(vocabulary):
            raise ConfigError(
                f"{self.path} was built with another tokenizer ({self.vocabulary.size} ids, the target has "
                f"{vocabulary.size}); build it again with outrider corpus build --target and this target"
            )


def joined(documents: Iterable[Sequence[int] | Int32Array], most_tokens: int = MOST_TOKENS) -> Int32Array:
    """Join different documents, a separator behind each; the oldest go first where there are too many tokens."""
    distinct: dict[bytes, Int32Array] = {}
    for document in documents:
        array = np.ascontiguousarray(document, np.int32)
        if len(array):
            distinct.pop(array.tobytes(), None)  # what comes again is as young as its last time
            distinct[array.tobytes()] = array
    end = np.array([SEPARATOR], np.int32)
    kept: list[Int32Array] = []
    left = most_tokens
    for array in reversed(distinct.values()):
        if len(array) >= left:
            # a single document that is too long keeps its end
            kept += [] if kept else [end, array[-(left - 1) :]]
            break
        left -= len(array) + 1
        kept += [end, array]
    return np.concatenate(kept[::-1] or [np.empty(0, np.int32)])


def write_corpus(
    path: Path, tokens_N: Int32Array, vocabulary: Vocabulary, depth: int = DEPTH, listen: Listener = unheard
) -> None:
    """Sort the suffixes of joined documents and write a corpus file, atomically.

    Args:
        tokens_N: documents as `joined` returns them.
        listen: called before each sort.

    Raises:
        ConfigError: for documents without a token.
        RunError: if the file cannot be written.
    """
    if not len(tokens_N):
        raise ConfigError("these documents hold no token; give texts that are not empty")
    index = CorpusIndex(tokens_N, suffix_order(tokens_N, depth, listen), depth, vocabulary.size)
    facts = {
        KEY: VERSION,
        "depth": str(depth),
        "vocab_size": str(vocabulary.size),
        "vocabulary": vocabulary.digest,
        "crc32": f"{_checksum(vocabulary, index):08x}",
    }
    arrays = {"tokens": torch.from_numpy(index.tokens_N), "suffixes": torch.from_numpy(index.suffixes_N)}
    with writing(path), replacing(path) as part:
        save_file(arrays, part, metadata=facts)


def merge_into(
    path: Path,
    documents: Iterable[Sequence[int] | Int32Array],
    vocabulary: Vocabulary,
    most_tokens: int = MOST_TOKENS,
    listen: Listener = unheard,
) -> None:
    """Add documents to a corpus file, which is created if it is not there; the oldest go where they are too many.

    Raises:
        CheckpointError: if the file is no corpus.
        ConfigError: if it was built with another tokenizer.
        RunError: if it cannot be written.
    """
    with FileLock(path.with_name(f".{path.name}.lock")):
        known: list[Int32Array] = []
        depth = DEPTH
        if path.exists():
            corpus = Corpus.open(path)
            corpus.require(vocabulary)
            known, depth = corpus.documents(), corpus.index.depth
        write_corpus(path, joined([*known, *documents], most_tokens), vocabulary, depth, listen)


def _checksum(vocabulary: Vocabulary, index: CorpusIndex) -> int:
    facts = f"{vocabulary.size} {vocabulary.digest} {index.depth}".encode()
    return zlib.crc32(index.suffixes_N.data, zlib.crc32(index.tokens_N.data, zlib.crc32(facts)))
