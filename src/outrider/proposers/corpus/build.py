"""Building a corpus from files: read, tokenize, sort, write.

Example: `build([Path("src")], Path("project.corpus"), "smollm2-135m").num_documents`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from outrider.errors import ConfigError
from outrider.kernels.compiled import Int32Array
from outrider.proposers.corpus.documents import Document, Skipped, read_documents, tokenized
from outrider.proposers.corpus.store import MOST_TOKENS, Corpus, Vocabulary, joined, merge_into, write_corpus
from outrider.records.files import size
from outrider.records.progress import Listener, unheard
from outrider.targets.deferred import DeferredTarget

__all__ = ["Built", "build"]

BATCH_CHARS = 1 << 23
"""Characters that are tokenized at once."""


@dataclass(frozen=True, kw_only=True)
class Built:
    """A corpus, as a report says it.

    num_skipped  files of directories that are not text
    num_bytes    size of the file
    """

    file: str
    num_documents: int
    num_tokens: int
    num_bytes: int
    num_skipped: int

    @classmethod
    def of(cls, corpus: Corpus, num_skipped: int) -> Self:
        """Describe an open corpus."""
        return cls(
            file=str(corpus.path),
            num_documents=corpus.num_documents,
            num_tokens=corpus.num_tokens,
            num_bytes=corpus.path.stat().st_size,
            num_skipped=num_skipped,
        )

    def plain(self) -> dict[str, Any]:
        """Return the entry of a JSON line."""
        return asdict(self)

    def sentence(self) -> str:
        """Return the report for a person."""
        return f"{self.file}: {self.num_documents:,} documents, {self.num_tokens:,} tokens, {size(self.num_bytes)}"


def build(
    files: Sequence[Path],
    output: Path,
    target: str,
    *,
    add: bool = False,
    max_tokens: int = MOST_TOKENS,
    trust_remote_code: bool = False,
    listen: Listener = unheard,
) -> Built:
    """Write the documents of these files to a corpus.

    Args:
        files: as `read_documents` takes them.
        target: the model whose tokenizer is used.
        add: keep the documents of a corpus that is there.
        max_tokens: the most tokens of the file, with one more for each document; the first are left out.

    Raises:
        CheckpointError: if the target or the corpus to add to cannot be read.
        ConfigError: for files that are not there or hold no text, and a target without a tokenizer.
        RunError: if the corpus cannot be written.
    """
    if not files:
        raise ConfigError("there is nothing to build from; give text files, .jsonl files or directories")
    described = DeferredTarget(target, dtype="bfloat16", trust_remote_code=trust_remote_code)
    if described.tokenizer is None:
        raise ConfigError(f"{target} has no tokenizer, so it cannot read texts; add its tokenizer files")
    vocabulary = Vocabulary.of(described.spec.vocab_size, described.tokenizer)
    skipped: list[Skipped] = []
    documents = list(_tokenized(described.tokenizer, files, skipped, listen))
    if add:
        merge_into(output, documents, vocabulary, max_tokens, listen)
    else:
        write_corpus(output, joined(documents, max_tokens), vocabulary, listen=listen)
    return Built.of(Corpus.open(output), len(skipped))


def _tokenized(tokenizer: Any, files: Sequence[Path], skipped: list[Skipped], listen: Listener) -> Iterator[Int32Array]:
    """Yield the token ids of the documents in batches of some megabytes."""
    batch: list[Document] = []
    for found in read_documents(files, listen):
        if isinstance(found, Skipped):
            skipped.append(found)
            continue
        batch.append(found)
        if sum(len(one.text) for one in batch) >= BATCH_CHARS:
            yield from tokenized(tokenizer, [one.text for one in batch])
            batch = []
    yield from tokenized(tokenizer, [one.text for one in batch])
