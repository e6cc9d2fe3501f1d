"""`outrider corpus`: texts that suffix decoding and the hybrid look up, in one file."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

__all__ = ["CorpusCommand"]


@dataclass(frozen=True, kw_only=True)
class Build:
    """Build a corpus from texts: files, directories of files, and .jsonl with one document a line.

    A line of a named .jsonl is a string, {"text": ...} or {"messages": [...]}, of which the assistant's are taken.
    Equal documents are kept once.
    """

    files: tyro.conf.Positional[tuple[Path, ...]]
    """Text files, .jsonl files and directories; files that are not text are left out of directories."""
    output: Path
    """The file to write; one that is there is replaced, or added to with --add."""
    target: str = "smollm2-135m"
    """The model whose tokenizer is used: a directory, a GGUF file, a hub id, or smollm2-135m."""
    add: bool = False
    """Add to the file that is there."""
    max_tokens: int = 256_000_000
    """The most tokens of the file, 8 bytes each; the first documents are left out beyond that."""
    trust_remote_code: bool = False
    """Run Python code that comes with the tokenizer; read it first."""

    def __post_init__(self) -> None:
        from outrider.errors import check_setting
        from outrider.proposers.corpus.store import MOST_TOKENS

        check_setting(
            self, "max_tokens", 2 <= self.max_tokens <= MOST_TOKENS, f"between 2 and {MOST_TOKENS}, separators included"
        )

    def run(self) -> None:
        from outrider.cli.interruption import resumable
        from outrider.cli.terminal import end_with, progress
        from outrider.proposers.corpus.build import build

        with progress() as bar, resumable(lambda: f"; {self.output} is as it was before"):
            built = build(
                self.files,
                self.output,
                self.target,
                add=self.add,
                max_tokens=self.max_tokens,
                trust_remote_code=self.trust_remote_code,
                listen=lambda at: bar.show(*at),
            )
            if built.num_skipped:
                bar.say(f"left out, because they are not text in UTF-8: {built.num_skipped} files")
        end_with(json.dumps(built.plain()), built.sentence())


@dataclass(frozen=True, kw_only=True)
class Show:
    """Say what a corpus holds, and check that it is whole."""

    file: tyro.conf.Positional[Path]
    """A corpus."""

    def run(self) -> None:
        from outrider.cli.terminal import end_with
        from outrider.errors import CheckpointError
        from outrider.proposers.corpus.build import Built
        from outrider.proposers.corpus.store import Corpus

        corpus = Corpus.open(self.file)
        if not corpus.check():
            raise CheckpointError(f"{self.file} is damaged: its checksum does not match; build it anew")
        built = Built.of(corpus, 0)
        end_with(json.dumps(built.plain()), built.sentence())


Work = Annotated[Build, tyro.conf.subcommand("build")] | Annotated[Show, tyro.conf.subcommand("show")]


@dataclass(frozen=True, kw_only=True)
class CorpusCommand:
    """Build or show a corpus: texts on disk that suffix and hybrid look up (--method suffix:corpus=FILE)."""

    work: Annotated[Work, tyro.conf.arg(name="")]

    def run(self) -> None:
        self.work.run()
