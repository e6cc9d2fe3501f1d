"""Checks of an engine's arguments.

Example: `Engine("smollm2-135m", proposer)` is refused: the target is a name, and must be loaded.
"""

from outrider.errors import ConfigError
from outrider.proposer import Proposer
from outrider.records.display import shown
from outrider.records.values import whole
from outrider.target import Target

__all__ = ["check_types", "checked_chunk"]


def check_types(target: object, proposer: object, record: object) -> None:
    """Refuse what is no target, no proposer, or no function.

    Raises:
        ConfigError: with what would be right.
    """
    if not isinstance(target, Target):
        raise ConfigError(f"target={shown(target)} must be a target, for example outrider.load_target('smollm2-135m')")
    if not isinstance(proposer, Proposer):
        raise ConfigError(f"proposer={shown(proposer)} must be a proposer, for example load_proposer('ngram', target)")
    if not callable(record):
        raise ConfigError(f"record={shown(record)} must be a function that takes a record")


def checked_chunk(num_tokens: int | None, default: int) -> int:
    """Return the size of a chunk of prompts.

    Raises:
        ConfigError: if it is no number of at least 1.
    """
    chunk = default if num_tokens is None else whole("prefill_chunk", num_tokens, ConfigError)
    if chunk < 1:
        raise ConfigError(f"prefill_chunk={shown(chunk)} must be at least 1")
    return chunk
