"""Incremental decoding: text that was emitted never changes, and all of it equals the tokenizer's own `decode`.

Text of new tokens may still change while they are the last ones: bytes of an unfinished character, a run of
byte-fallback tokens (one wrong byte turns the whole run into U+FFFD), a space that is cleaned away before a full stop.
Such a *tail* waits. Only the last two certain parts are decoded again, so the cost of a token does not grow:

    tokens     ... [ start ... read ) [ read ... end )
                   a certain part     the tail: decode(start .. end) without decode(start .. read)

The part before `read` gives the tail its surroundings: many decoders drop a space in front of the first token.
A tokenizer without a Rust back end is read through its own `decode`. Tokens that cannot be decoded have no text.
"""

import re
from collections.abc import Callable
from copy import copy
from functools import cached_property
from typing import Any, TypeVar, final

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from outrider.errors import is_failure

__all__ = ["UNFINISHED", "Detokenizer", "Vocabulary", "guarded"]

T = TypeVar("T")
DECODE = {"decode": PreTrainedTokenizerFast.decode, "_decode": PreTrainedTokenizerFast._decode}
BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")
UNFINISHED = "\N{REPLACEMENT CHARACTER}"
CLEANED = (" ", " '", " n", " n'", " 'v", " 'r")
"""Ends of a text that `clean_up_tokenization` may still rewrite: the proper beginnings of what it replaces."""


def guarded(call: Callable[[], T], otherwise: Callable[[Exception], T]) -> T:
    """Return what `call` gives, or `otherwise` of the error; a panic of the Rust library counts as an error."""
    try:
        return call()
    except Exception as error:
        return otherwise(error)
    except BaseException as error:
        if not is_failure(error):
            raise
        return otherwise(RuntimeError(str(error)))


@final
class Vocabulary:
    """The part of a tokenizer that decoding needs."""

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._tokenizer = tokenizer
        self._backend = backend if isinstance(backend, Tokenizer) else None
        self._cleans = _cleans(tokenizer, self._backend)
        own = any(getattr(type(tokenizer), name, None) not in (None, usual) for name, usual in DECODE.items())
        self._direct = self._backend is not None and not self._cleans and not own

    def decode(self, tokens: list[int], skip_special_tokens: bool) -> str | None:
        """Return the text of these tokens, or None where the tokenizer fails on them."""
        decode = self._backend.decode if self._direct and self._backend is not None else self._tokenizer.decode
        text = guarded(lambda: decode(tokens, skip_special_tokens=skip_special_tokens), lambda error: None)
        return text if isinstance(text, str) else None

    def hidden(self, token: int) -> str | None:
        """Return the text of a special token, which answers leave out, or None for any other."""
        return self._special.get(token)

    def is_byte(self, token: int) -> bool:
        """Return whether this is a token of byte fallback."""
        read = self._tokenizer.convert_ids_to_tokens if self._backend is None else self._backend.id_to_token
        text = guarded(lambda: read(token), lambda error: None)
        return isinstance(text, str) and BYTE.fullmatch(text) is not None

    def may_change(self, text: str) -> bool:
        """Return whether a text with this end may be decoded differently once more tokens follow."""
        return text.endswith(UNFINISHED) or (self._cleans and text.endswith(CLEANED))

    @cached_property
    def _special(self) -> dict[int, str]:
        if self._backend is None:
            names = self._tokenizer.convert_ids_to_tokens
            return {token: str(names(token)) for token in self._tokenizer.all_special_ids}
        added = self._backend.get_added_tokens_decoder().items()
        return {token: word.content for token, word in added if word.special}


@final
class Detokenizer:
    """The text of one growing list of tokens.

    `tail` is the text of the last tokens that may still change.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.tail = ""
        self._vocabulary = vocabulary
        self._skip = True
        self._tokens: list[int] = []
        self._start = self._read = 0
        self._known = ""  # of start .. read
        self._given: list[str] = []

    def with_special_tokens(self) -> "Detokenizer":
        """Return a copy that shows special tokens from here on; none of its tokens so far was special."""
        other = copy(self)
        other._skip, other._tokens, other._given = False, list(self._tokens), list(self._given)
        return other

    def push(self, token: int) -> str:
        """Return the text that this token makes certain, often its own."""
        self._tokens.append(token)
        text = self._vocabulary.decode(self._tokens[self._start :], self._skip)
        if text is None:
            self._tokens.pop()
            return ""
        if not text.startswith(self._known):
            return ""
        tail = text[len(self._known) :]
        if tail == self.tail or self._vocabulary.is_byte(token) or self._vocabulary.may_change(tail):
            self.tail = tail
            return ""
        self._settle(tail, text)
        return tail

    def flush(self) -> str:
        """Return the rest, when no token follows."""
        tail, self.tail = self.tail, ""
        given = "".join(self._given)
        text = self._vocabulary.decode(self._tokens, self._skip)
        rest = text[len(given) :] if text is not None and text.startswith(given) else tail
        self._given.append(rest)
        return rest

    def _settle(self, tail: str, text: str) -> None:
        last = self._vocabulary.decode(self._tokens[self._read :], self._skip)
        if last is not None and last.strip():
            self._start, self._known = self._read, last
        else:  # too little context for the next token
            self._known = text
        self._read = len(self._tokens)
        self._given.append(tail)
        self.tail = ""


def _cleans(tokenizer: Any, backend: Tokenizer | None) -> bool:
    """Return whether `decode` rewrites spaces before punctuation; `transformers` does not for BPE models."""
    if not getattr(tokenizer, "clean_up_tokenization_spaces", False):
        return False
    forced = getattr(tokenizer, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False)
    return bool(forced) or backend is None or type(backend.model).__name__ != "BPE"
