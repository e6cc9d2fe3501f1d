"""Conversion between text and tokens: prompts to tokens, tokens to streamed text, and stop strings.

A string prompt is one user turn of a chat if the tokenizer has a chat template, plain text otherwise; a list of
messages is a conversation; a list of token ids is used as it is.

Text is decoded token by token. Bytes of an unfinished UTF-8 character wait for the rest, and text that may begin a stop
string waits until that is clear. Example: with the stop string "END", the pieces "the E", "N", "ext" come out as
nothing, nothing, "the ENext".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

from outrider.errors import RequestError
from outrider.requests.chat import render, tokenize
from outrider.requests.detokenize import UNFINISHED, Detokenizer, Vocabulary
from outrider.requests.prompts import Prompt, as_prompt

__all__ = ["Piece", "Prompt", "TextStream", "encode"]


class Piece(NamedTuple):
    """Text of one token (possibly empty), and whether the token came from the draft."""

    text: str
    drafted: bool


def encode(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Return the token ids of a prompt.

    Raises:
        RequestError: for anything that is no prompt, an empty one, text without a tokenizer, or text that the
            tokenizer or its chat template refuses.
    """
    given = as_prompt(prompt)
    if not isinstance(given, str) and isinstance(given[0], int):
        return given
    if tokenizer is None:
        raise RequestError("this target has no tokenizer; give the prompt as a list of token ids")
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
        return tokenize(tokenizer, render(tokenizer, messages), add_special_tokens=False)
    if isinstance(given, str):
        return tokenize(tokenizer, given)
    raise RequestError("this target has no chat template; give the prompt as plain text or token ids")


@dataclass(frozen=True, kw_only=True)
class _Segment:
    """The text of one token: for the search of stop strings, and for the answer.

    raw      text with special tokens, which stop strings are searched in
    piece    text without them, which the answer gets
    hidden   number of characters of the special token that ends `raw`, if there is one
    before   uncertain text in front of that special token
    """

    raw: str
    piece: Piece
    hidden: int = 0
    before: str = ""

    def cut(self, at: int) -> Piece:
        """Return the part in front of a stop string that begins at this place of `raw`."""
        text = self.before if self.hidden else self.piece.text
        behind = max(0, len(self.raw) - self.hidden - at)
        return Piece(text[: max(0, len(text) - behind)], self.piece.drafted)


@final
class TextStream:
    """The text of one growing answer. Stop strings are not searched in the text of the first `min_tokens` tokens."""

    def __init__(self, tokenizer: Any, stop: Sequence[str] = (), min_tokens: int = 0) -> None:
        self._stop = tuple(stop)
        self._num_unsearched = min_tokens
        self._held: list[_Segment] = []
        self._drafted = False
        self.stopped = False
        self._vocabulary = None if tokenizer is None else Vocabulary(tokenizer)
        if self._vocabulary is not None:
            self._text = Detokenizer(self._vocabulary)
            self._raw = self._text  # until there is a special token

    def push(self, token: int, drafted: bool) -> list[Piece]:
        """Return the pieces that are now certain; set `stopped` at a complete stop string, which is cut off."""
        if self._vocabulary is None:
            return [Piece("", drafted)]
        self._drafted = drafted
        special = self._vocabulary.hidden(token) if self._stop else None
        if special is not None and self._raw is self._text:
            self._raw = self._text.with_special_tokens()
        piece = Piece(self._text.push(token), drafted)
        if not self._stop:
            return [piece]
        raw = piece.text if self._raw is self._text else self._raw.push(token)
        if self._num_unsearched > 0:
            self._num_unsearched -= 1
            return [piece]
        before, hidden = ("", 0) if special is None else (self._text.tail, len(special))
        self._held.append(_Segment(raw=raw, piece=piece, hidden=hidden, before=before))
        held = self._joined()
        seen = held + self._raw.tail.rstrip(UNFINISHED)
        if any(stop in seen for stop in self._stop):
            return self._rest()
        return self._take(min(len(held) - self._longest_partial(held), len(seen) - self._longest_partial(seen)))

    def flush(self) -> list[Piece]:
        """Return the text that was held back, once the answer has ended for another reason."""
        return [] if self._vocabulary is None or self.stopped else self._rest()

    def _rest(self) -> list[Piece]:
        """Return everything that is left, up to the first stop string."""
        piece = Piece(self._text.flush(), self._drafted)
        raw = piece.text if self._raw is self._text else self._raw.flush()
        held, self._held = [*self._held, *([_Segment(raw=raw, piece=piece)] if raw or piece.text else [])], []
        joined = "".join(segment.raw for segment in held)
        found = [at for at in (joined.find(stop) for stop in self._stop) if at >= 0]
        if not found:
            return [segment.piece for segment in held]
        self.stopped = True
        left, pieces = min(found), []
        while len(held[0].raw) <= left:
            left -= len(held[0].raw)
            pieces.append(held.pop(0).piece)
        return [*pieces, held[0].cut(left)]

    def _joined(self) -> str:
        return "".join(segment.raw for segment in self._held)

    def _longest_partial(self, joined: str) -> int:
        lengths = (n for stop in self._stop for n in range(1, len(stop)) if joined.endswith(stop[:n]))
        return max(lengths, default=0)

    def _take(self, num_chars: int) -> list[Piece]:
        taken: list[Piece] = []
        while self._held and len(self._held[0].raw) <= num_chars:
            segment = self._held.pop(0)
            num_chars -= len(segment.raw)
            taken.append(segment.piece)
        return taken
