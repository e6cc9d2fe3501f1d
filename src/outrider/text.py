"""Between text and tokens: prompts in, streamed text out, stop strings found as soon as they are complete.

A string prompt is one user turn of a chat where the tokenizer has a chat template, plain text otherwise; a list of
messages is a conversation; a list of token ids is used as it is.

Text is decoded token by token. Bytes of an unfinished UTF-8 character wait for the rest, and text that may be the
beginning of a stop string waits until it is clear. Example: with the stop string "END", the pieces "the E", "N", "ext"
come out as nothing, nothing, "the ENext".
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, final

from tokenizers.decoders import DecodeStream

from outrider.errors import RequestError
from outrider.requests import Prompt, as_prompt

__all__ = ["Piece", "Prompt", "TextStream", "encode"]


class Piece(NamedTuple):
    """Text of one token (possibly empty), and whether the token came from the draft."""

    text: str
    drafted: bool


def encode(tokenizer: Any, prompt: Prompt) -> list[int]:
    """The token ids of a prompt.

    Raises:
        RequestError: for anything that is no prompt, an empty one, or text without a tokenizer.
    """
    given = as_prompt(prompt)
    if not isinstance(given, str) and isinstance(given[0], int):
        return given
    if tokenizer is None:
        raise RequestError("this target has no tokenizer; give the prompt as a list of token ids")
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
        tokens = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    elif isinstance(given, str):
        tokens = tokenizer(given)["input_ids"]
    else:
        raise RequestError("this target has no chat template; give the prompt as plain text or token ids")
    return [int(token) for token in tokens]


@final
class TextStream:
    """The text of one growing answer."""

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._backend = None if tokenizer is None else tokenizer.backend_tokenizer
        self._decode = DecodeStream(skip_special_tokens=True)
        self._stop = tuple(stop)
        self._held: list[Piece] = []
        self.stopped = False

    def push(self, token: int, drafted: bool) -> list[Piece]:
        """Pieces that are now certain; sets `stopped` when a stop string is complete (it and what follows is cut)."""
        text = "" if self._backend is None else self._decode.step(self._backend, token) or ""
        self._held.append(Piece(text, drafted))
        joined = "".join(piece.text for piece in self._held)
        found = [at for at in (joined.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped = True
            return self._take(min(found), cut=True)
        return self._take(len(joined) - self._longest_partial(joined), cut=False)

    def flush(self) -> list[Piece]:
        """What was held back, when the answer ended for another reason."""
        held, self._held = self._held, []
        return held

    def _longest_partial(self, joined: str) -> int:
        lengths = (n for stop in self._stop for n in range(1, len(stop)) if joined.endswith(stop[:n]))
        return max(lengths, default=0)

    def _take(self, num_chars: int, cut: bool) -> list[Piece]:
        taken: list[Piece] = []
        while self._held and len(self._held[0].text) <= num_chars:
            piece = self._held.pop(0)
            num_chars -= len(piece.text)
            taken.append(piece)
        if cut and self._held:
            head = self._held[0]
            taken.append(Piece(head.text[:num_chars], head.drafted))
            self._held = []
        return taken
