"""The process that runs inputs: `python -m benchmarks.fuzz.child KIND FIRST NUM` prints one outcome per line."""

import faulthandler
import importlib
import os
import random
import resource
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

from benchmarks.fuzz.driver import MOST_BYTES, MOST_DATA, READY, TOO_LARGE, rng_of
from benchmarks.fuzz.kinds import KINDS

from outrider.errors import OutriderError

Use = Callable[[random.Random, Path], None]
MAX_MESSAGE_CHARS = 1000


def attempt(kind: Use, rng: random.Random) -> str:
    """Return "taken", "refused", or why this input is a failure, on one line."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        try:
            kind(rng, Path(scratch))
        except OutriderError as error:
            return _judged(str(error))
        except BaseException as error:  # SystemExit is a failure too
            steps = traceback.extract_tb(error.__traceback__)[-3:]
            where = " < ".join(f"{Path(step.filename).name}:{step.lineno}" for step in reversed(steps))
            return f"{type(error).__name__} {ascii(str(error))[:200]} at {where}"
    return "taken"


def _judged(message: str) -> str:
    """Return "refused" for one line of printable text, else the reason of a failure."""
    if len(message) < 10 or len(message) > MAX_MESSAGE_CHARS:
        return f"a message of {len(message)} characters: {ascii(message)[:200]}"
    if not message.isprintable():
        return f"a message that is not printable: {ascii(message)[:300]}"
    return "refused"


def main() -> None:
    """Keep standard output for outcomes; whatever the library prints goes to /dev/null."""
    faulthandler.enable()
    warnings.simplefilter("ignore")
    name, first, num = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    outcomes = os.fdopen(os.dup(1), "w", buffering=1)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    if not os.environ.get("FUZZ_STDERR"):
        os.dup2(quiet, 2)
    module, _, function = KINDS[name].place.partition(":")
    kind: Use = getattr(importlib.import_module(module), function)
    print(READY, file=outcomes)
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_DATA, MOST_DATA))
    for seed in range(first, first + num):
        outcome = attempt(kind, rng_of(name, seed))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if peak > MOST_BYTES:  # of this process for good, so another takes the seeds that are left
            print(f"{TOO_LARGE} {peak >> 20} MiB ({outcome})", file=outcomes)
            return
        print(outcome, file=outcomes)


if __name__ == "__main__":
    main()
