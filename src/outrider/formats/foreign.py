"""Calls into `transformers` that read a checkpoint: any error becomes one sentence, and remote code needs consent.

A checkpoint's code runs only with `trust_remote_code`. Every call that could run code passes that flag explicitly,
because without it `transformers` asks on standard input, which may hold prompts. A test checks it.

Example: a tokenizer with a class of its own ends in "DIR needs Python code that comes with it; ...".
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from outrider.errors import CheckpointError, OutriderError, is_failure, said

__all__ = ["reading"]


@contextmanager
def reading(what: str, directory: Path | str, trusts: bool, remedy: str) -> Iterator[None]:
    """Turn any error into one sentence, "`what` (its message); `remedy`"; our own errors pass.

    Raises:
        CheckpointError: in place of any error, and of a panic of the Rust libraries.
    """
    try:
        yield
    except OutriderError:
        raise
    except BaseException as error:
        # KeyboardInterrupt and SystemExit pass; a panic of a Rust library is no Exception
        if not is_failure(error):
            raise
        if not trusts and "trust_remote_code" in str(error):
            raise CheckpointError(
                f"{directory} needs Python code that comes with it; read that code, then pass trust_remote_code=True"
                " (on the command line --trust-remote-code)"
            ) from error
        raise CheckpointError(f"{what} ({said(error)}); {remedy}") from error
