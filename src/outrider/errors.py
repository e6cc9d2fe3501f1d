"""The exception tree.

Everything a user can cause is an `OutriderError` whose message is one clear sentence that names the value and the
remedy; the command line prints it and exits with status 2. A failed `assert` is our own mistake.

    OutriderError
    ├── RequestError          a prompt or a setting of one request: empty, too long, a token out of range
    │   └── EngineBusyError   a second thread, or a call from inside a step, on an engine that is working
    ├── ConfigError           an unknown name or setting, or one out of its range; names the nearest known one
    ├── CheckpointError       missing, truncated, misshapen or mismatching weights, config or tokenizer
    ├── CapacityError         a plan that does not fit; says what would
    ├── ProposerError         a method's draft that the target cannot read: past its limit, no token, a slot missing
    ├── LosslessnessError     an output differs from the target's own and no numerical tie explains it
    └── RunError              a benchmark or training run cannot go on: disk full, a foreign run directory
        └── EndpointError     a server does not answer, or not as it should; names its address
"""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import takewhile

__all__ = [
    "CapacityError",
    "CheckpointError",
    "ConfigError",
    "EndpointError",
    "EngineBusyError",
    "LosslessnessError",
    "OutriderError",
    "ProposerError",
    "RequestError",
    "RunError",
    "Terminated",
    "as_error",
    "check_setting",
    "is_failure",
    "nearest",
    "on_one_line",
    "said",
]


class OutriderError(Exception):
    """Base of every error that a user can cause and mend."""


class RequestError(OutriderError):
    """One request cannot be served as asked."""


class EngineBusyError(RequestError):
    """A step of the engine is still running, in this thread or another."""


class ConfigError(OutriderError):
    """A name or a setting is unknown or out of range."""


class CheckpointError(OutriderError):
    """Weights, config or tokenizer on disk are not what they should be."""


class CapacityError(OutriderError):
    """The plan does not fit in memory or in the planned buffers."""


class ProposerError(OutriderError):
    """A proposer returned what is no draft for these slots and limits."""


class LosslessnessError(OutriderError):
    """An output differs from plain decoding beyond numerical ties."""


class RunError(OutriderError):
    """A long-running command cannot continue."""


class EndpointError(RunError):
    """A server does not answer, or not as an OpenAI-compatible server."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, handled as Ctrl-C is; the command line ends with status 143."""


def nearest(name: object, known: Iterable[str]) -> str:
    """Return the end of an error message: `; did you mean 'x'?` or the list of known names.

    Of equally close names, that with the longest common beginning is meant.

    >>> nearest("ngran", ["ngram", "suffix"])
    "; did you mean 'ngram'?"
    >>> nearest("eagle4", ["peagle", "eagle3"])
    "; did you mean 'eagle3'?"
    """
    names, text = sorted(known), str(name)
    close = difflib.get_close_matches(text, names, n=len(names) or 1, cutoff=0.6)

    def closeness(one: str) -> tuple[float, int]:
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, text, strict=False)))
        return difflib.SequenceMatcher(None, one, text).ratio(), shared

    return f"; did you mean '{max(close, key=closeness)}'?" if close else f"; known: {', '.join(names)}"


def check_setting(settings: object, name: str, fits: bool, wanted: str) -> None:
    """Refuse a setting that does not fit.

    Raises:
        ConfigError: "`name`=its value must be `wanted`".
    """
    if not fits:
        raise ConfigError(f"{name}={getattr(settings, name)} must be {wanted}")


@contextmanager
def as_error(error: type[OutriderError], what: str, remedy: str) -> Iterator[None]:
    """Turn whatever another library raises into one sentence: "`what` (its message); `remedy`"; our own errors pass.

    >>> with as_error(RunError, "bad length", "give a number"):
    ...     int("x")
    Traceback (most recent call last):
    outrider.errors.RunError: bad length (ValueError: invalid literal for int() with base 10: 'x'); give a number
    """
    try:
        yield
    except OutriderError:
        raise
    except Exception as reason:
        raise error(f"{what} ({said(reason)}); {remedy}") from reason


def said(error: BaseException) -> str:
    """Return another library's error for use in a message: its kind and its words."""
    return f"{type(error).__name__}: {on_one_line(str(error)) or 'no message'}"


def is_failure(error: BaseException) -> bool:
    """Return whether a library failed: an exception, or a panic of a Rust library, which is no `Exception`."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def on_one_line(text: str, max_chars: int = 200) -> str:
    """Return a foreign text for use in a message: one line, shortened, and escapes in place of control characters."""
    line = " ".join(text.split())
    cut = line if len(line) <= max_chars else line[:max_chars] + "..."
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in cut)
