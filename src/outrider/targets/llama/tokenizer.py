"""The tokenizer of a file that llama.cpp runs.

Ours is built from the file where it knows the rule by which the vocabulary splits text, and compared with llama.cpp's
own on some lines. Where it is not known, or the two differ, llama.cpp's own is used, behind the few methods of a
`transformers` tokenizer that a target needs.

Example: of the embedded target's file it is the tokenizer that the native target has; a file whose rule is "gpt-4o" is
read by llama.cpp.
"""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, final

from transformers.utils.chat_template_utils import render_jinja_template

from outrider.errors import CheckpointError
from outrider.formats.gguf.file import GgufFile
from outrider.formats.gguf.stored import stored_tokenizer
from outrider.targets.llama.binding import Model, library

__all__ = ["LlamaTokenizer", "tokenizer_of"]

SAMPLES: Final = (
    "Hello, world! It's 2024-11-30; 1,234.5 apples (or so).",
    "def add(a, b):\n    return a + b  # Ünïcode, 漢字, 😀\n\n",
    "  two leading spaces\tand\ttabs\r\nWE'LL see I'M here",
)
CONTROL: Final = 8
"""The attribute of a control token."""


def tokenizer_of(source: GgufFile, model: Model) -> Any:
    """Return our tokenizer of a file where it reads text as llama.cpp does, else llama.cpp's own."""
    theirs = LlamaTokenizer(model, source.metadata.text("tokenizer.chat_template", None))
    try:
        ours = stored_tokenizer(source)
    except CheckpointError:
        return theirs
    same = all(ours(text)["input_ids"] == theirs(text)["input_ids"] for text in SAMPLES)
    return ours if same else theirs


@final
class LlamaTokenizer:
    """llama.cpp's tokenizer with the methods of one of `transformers`."""

    def __init__(self, model: Model, chat_template: str | None) -> None:
        self._model = model
        self._module = library()
        self.chat_template = chat_template
        self.name_or_path = str(model.file)
        self.bos_token_id, self.eos_token_id, self.pad_token_id = (
            self._known(getattr(self._module, f"llama_vocab_{name}")(model.vocab)) for name in ("bos", "eos", "pad")
        )
        self.unk_token_id = None
        self.all_special_ids = [token for token in range(model.vocab_size) if self._is_control(token)]

    def __call__(self, text: str, add_special_tokens: bool = True) -> Mapping[str, list[int]]:
        """Return `input_ids` of a text, in which names of special tokens are those tokens."""
        data = text.encode("utf-8")

        def tokenize(buffer: Any, size: int) -> int:
            return int(
                self._module.llama_tokenize(self._model.vocab, data, len(data), buffer, size, add_special_tokens, True)
            )

        return {"input_ids": list(_filled(tokenize, self._module.llama_token, len(data) + 8))}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the tokens of a text."""
        return self(text, add_special_tokens)["input_ids"]

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Return the text of tokens; bytes that are no character become U+FFFD."""
        given = (self._module.llama_token * len(tokens))(*tokens)

        def detokenize(buffer: Any, size: int) -> int:
            vocab, shows = self._model.vocab, not skip_special_tokens
            return int(self._module.llama_detokenize(vocab, given, len(tokens), buffer, size, False, shows))

        return bytes(_filled(detokenize, ctypes.c_char, 16 * len(tokens) + 16)).decode("utf-8", "replace")

    def convert_ids_to_tokens(self, token: int) -> str:
        """Return a token as the vocabulary writes it."""
        return str(self._module.llama_vocab_get_text(self._model.vocab, token).decode("utf-8", "replace"))

    def get_vocab(self) -> dict[str, int]:
        """Return the tokens by what the vocabulary writes."""
        return {self.convert_ids_to_tokens(token): token for token in range(self._model.vocab_size)}

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
        """Return the text of a conversation; `tokenize` is ignored."""
        variables.pop("tokenize", None)
        named = {f"{name}_token": self._name(getattr(self, f"{name}_token_id")) for name in ("bos", "eos", "pad")}
        rendered = render_jinja_template(
            conversations=[[dict(message) for message in messages]],
            chat_template=self.chat_template,
            **named,
            **variables,
        )
        return str(rendered[0][0])

    def _name(self, token: int | None) -> str:
        return "" if token is None else self.convert_ids_to_tokens(token)

    def _known(self, token: int) -> int | None:
        return token if token >= 0 else None

    def _is_control(self, token: int) -> bool:
        return bool(self._module.llama_vocab_get_attr(self._model.vocab, token) & CONTROL)


def _filled(fill: Callable[[Any, int], int], kind: Any, size: int) -> Any:
    """Return what a call wrote into an array; a negative count is the size that it needs."""
    buffer = (kind * size)()
    count = fill(buffer, size)
    if count < 0:
        size = -count
        buffer = (kind * size)()
        count = fill(buffer, size)
    return buffer[: max(0, count)]
