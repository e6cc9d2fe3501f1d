"""The tokenizer of a model directory, read by `transformers`."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from outrider.formats.foreign import reading

__all__ = ["load_tokenizer"]


def load_tokenizer(directory: Path, trust_remote_code: bool = False) -> Any:
    """Return the tokenizer of a model directory, or None without one.

    Raises:
        CheckpointError: if its files cannot be read.
    """
    if not any((directory / name).exists() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")):
        return None
    with reading(f"the tokenizer in {directory} cannot be read", directory, trust_remote_code, "download it again"):
        return AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=trust_remote_code)
