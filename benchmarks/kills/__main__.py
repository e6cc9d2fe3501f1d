"""Kill commands at random moments, run them again, and compare what they leave with an undisturbed run.

    python -m benchmarks.kills [--num 100] [--seed 0] [--commands bench tune synthesize train ...]

Run from the root of a checkout. Every command works on a tiny random model, in a process forked from this one, so that
nearly every kill hits the work itself. A trial kills a command one to three times and then runs it to its end; trials
go on until SIGKILL has hit a working command `--num` times. Half as many kills are SIGTERM or SIGINT. A trial fails if

- the end differs from that of an undisturbed run: texts, weights, figures that no clock has part in;
- a piece that was finished when the kill came was made again by a later run (`pieces.py`);
- a signal ends in anything but its own exit status, or a traceback is printed.

Prints a line per trial that failed, and a table, after Ctrl-C too; the last line is JSON. Exit status 1 if a trial
failed.
"""

import argparse
import contextlib
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.kills.commands import commands, prepare
from benchmarks.kills.trial import Tally, finished, trial

from outrider.cli.commands.train import with_methods

NAMES = ("bench", "tune", "synthesize", "train", "quality", "profile", "export", "audit", "report")


NEEDS = {"train": ("synthesize",), "export": ("synthesize", "train"), "report": ("bench",)}
"""Commands whose results others work on."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=__doc__.split("\n")[0])
    parser.add_argument("--num", type=int, default=100, help="kills with SIGKILL")
    parser.add_argument("--seed", type=int, default=0, help="the first trial's; the others follow it")
    parser.add_argument("--commands", nargs="+", default=list(NAMES), choices=NAMES)
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it runs behind it ignore SIGINT
    with_methods()  # imports what a command would
    tally = {name: Tally() for name in options.commands}
    with tempfile.TemporaryDirectory(prefix="kills-") as scratch:
        root = Path(scratch)
        prepare(root)
        known = commands(root)
        wanted, seconds = {}, {}
        for name, command in known.items():
            if name not in options.commands and not any(name in NEEDS.get(one, ()) for one in options.commands):
                continue
            start, place = time.monotonic(), root / name / "out"
            if reason := finished(command.start(place), place):
                raise SystemExit(f"{name} undisturbed {reason}")
            wanted[name], seconds[name] = command.content(place), time.monotonic() - start
        with contextlib.suppress(KeyboardInterrupt):  # what was found so far is said
            for number in range(10 * options.num):
                if sum(one.num_kills["SIGKILL"] for one in tally.values()) >= options.num:
                    break
                name, place = options.commands[number % len(options.commands)], root / f"trial{number}" / "out"
                reason = trial(known[name], place, seconds[name], random.Random(options.seed + number), tally[name])
                if reason is None and known[name].content(place) != wanted[name]:
                    reason = "the end differs from an undisturbed run"
                if reason is not None:
                    tally[name].num_failures += 1
                    print(f"{name}, trial {number}: {reason}", flush=True)
                tally[name].num_trials += 1
                shutil.rmtree(place.parent)
    for name, one in tally.items():
        print(f"{name:10}  {one}")
    print(json.dumps({"schema": "outrider.kills/1", **{name: one.plain() for name, one in tally.items()}}))
    return int(any(one.num_failures for one in tally.values()))


if __name__ == "__main__":
    sys.exit(main())
