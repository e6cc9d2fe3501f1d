"""Files of a checkpoint in the hands of `transformers`, which may fail in any way, or want to run code that lies there.

Code is run only where the user asked for it (`trust_remote_code`). Every call into `transformers` that could run some
gets an explicit answer, since without one it asks on standard input, where a prompt may be read from. A test holds it.

Example: a tokenizer with a class of its own ends in "DIR needs Python code that comes with it; ...".
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from outrider.errors import CheckpointError, OutriderError, is_failure, said

__all__ = ["reading"]


@contextmanager
def reading(what: str, directory: Path | str, trusts: bool, remedy: str) -> Iterator[None]:
    """Turn whatever reading raises into one sentence: "`what` (its message); `remedy`"; our own errors pass.

    Raises:
        CheckpointError: in place of any error, and of a panic of the Rust libraries.
    """
    try:
        yield
    except OutriderError:
        raise
    except BaseException as error:
        if not is_failure(error):
            raise
        if not trusts and "trust_remote_code" in str(error):
            raise CheckpointError(
                f"{directory} needs Python code that comes with it; read that code, then pass trust_remote_code=True"
                " (on the command line --trust-remote-code)"
            ) from error
        raise CheckpointError(f"{what} ({said(error)}); {remedy}") from error
