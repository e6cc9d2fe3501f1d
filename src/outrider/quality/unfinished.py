"""Texts and figures that an interrupted measurement has already.

They lie in `quality/<key>.unfinished` of the cache and go when the measurement ends. The key is a hash of the
settings, the prompts, the chat template and the models' files, so that a measurement of anything else begins anew; so
does one whose file is damaged.

Example: `outrider quality --weights int8 int4`, interrupted in int4, keeps the line of int8; the same command measures
int4 alone.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, final

from outrider.env import cache_home, version
from outrider.errors import RunError
from outrider.quality.compare import Passage
from outrider.quality.filed import REMEDY, identity_of
from outrider.quality.report import Line
from outrider.quality.texts import Texts
from outrider.records.codec import dumps, loads
from outrider.records.files import write_text, writing

__all__ = ["Unfinished"]


@dataclass(frozen=True, kw_only=True)
class _Text:
    tokens: tuple[int, ...]
    start: int


@dataclass(frozen=True, kw_only=True)
class _Kept:
    prompts: tuple[_Text, ...]
    answers: tuple[_Text, ...]
    lines: tuple[Line, ...]


@final
class Unfinished:
    """The file of one measurement.

    Attributes:
        texts: passages, or None until they are known.
        lines: figures of the first candidates.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.texts: Texts | None = None
        self.lines: tuple[Line, ...] = ()
        try:
            digest, _, content = path.read_text(encoding="utf-8").partition("\n")
            kept = loads(_Kept, content) if digest == _digest(content) else None
        except (OSError, ValueError, RunError):
            return
        if kept is not None:
            self.texts, self.lines = Texts(_passages(kept.prompts), _passages(kept.answers)), kept.lines

    @classmethod
    def of(cls, settings: Mapping[str, Any], hashes: Sequence[str | None], sources: Sequence[Path]) -> Self:
        """Open the file of a measurement with these settings and hashes of texts, on models from these places."""
        identity = [version(), dict(settings), *hashes, *(identity_of(source) for source in sources)]
        key = hashlib.sha256(json.dumps(identity, default=str).encode(errors="surrogateescape")).hexdigest()[:16]
        return cls(cache_home() / "quality" / f"{key}.unfinished")

    def keep(self, texts: Texts, lines: Sequence[Line]) -> None:
        """Keep the texts and what is measured so far.

        Raises:
            RunError: if the cache cannot be written.
        """
        self.texts, self.lines = texts, tuple(lines)
        content = dumps(_Kept(prompts=_plain(texts.prompts), answers=_plain(texts.answers), lines=self.lines)) + "\n"
        with writing(self.path, REMEDY):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, f"{_digest(content)}\n{content}", REMEDY)

    def end(self) -> None:
        """Delete the file."""
        self.path.unlink(missing_ok=True)


def _digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def _passages(texts: Sequence[_Text]) -> list[Passage]:
    return [Passage(one.tokens, one.start) for one in texts]


def _plain(passages: Sequence[Passage]) -> tuple[_Text, ...]:
    return tuple(_Text(tokens=tuple(one.tokens), start=one.start) for one in passages)
