"""The tokenizer of a file that llama.cpp runs.

Example: of the embedded target's file it is the tokenizer that the native target has.
"""

from typing import Any

from outrider.formats.gguf.file import GgufFile
from outrider.formats.gguf.stored import stored_tokenizer
from outrider.targets.llama.binding import Model

__all__ = ["tokenizer_of"]


def tokenizer_of(source: GgufFile, model: Model) -> Any:
    """Return a `transformers` tokenizer."""
    return stored_tokenizer(source)
