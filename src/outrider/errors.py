"""The exception tree.

Everything a user can cause is an `OutriderError` whose message is one clear sentence that names the value and the
remedy; the command line prints it and exits with status 2. A failed `assert` is our own mistake.

    OutriderError
    ├── RequestError          a prompt or a setting of one request: empty, too long, a token out of range
    ├── ConfigError           an unknown name or setting, or one out of its range; names the nearest known one
    ├── CheckpointError       missing, truncated, misshapen or mismatching weights, config or tokenizer
    ├── CapacityError         what was asked for does not fit; says what would
    ├── LosslessnessError     an output differs from the target's own and no numerical tie explains it
    └── RunError              a benchmark or training run cannot go on: disk full, a foreign run directory
"""

import difflib
from collections.abc import Iterable

__all__ = [
    "CapacityError",
    "CheckpointError",
    "ConfigError",
    "LosslessnessError",
    "OutriderError",
    "RequestError",
    "RunError",
    "nearest",
]


class OutriderError(Exception):
    """Base of every error that a user can cause and mend."""


class RequestError(OutriderError):
    """One request cannot be served as asked."""


class ConfigError(OutriderError):
    """A name or a setting is unknown or out of range."""


class CheckpointError(OutriderError):
    """Weights, config or tokenizer on disk are not what they should be."""


class CapacityError(OutriderError):
    """The plan does not fit in memory or in the planned buffers."""


class LosslessnessError(OutriderError):
    """An output differs from plain decoding beyond numerical ties."""


class RunError(OutriderError):
    """A long-running command cannot continue."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: `; did you mean 'x'?` or the list of what is known.

    >>> nearest("ngran", ["ngram", "suffix"])
    "; did you mean 'ngram'?"
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(names)}"
