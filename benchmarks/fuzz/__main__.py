"""Feed damaged inputs to Outrider: each is taken or refused with one sentence, never a traceback, a hang or a crash.

    python -m benchmarks.fuzz [--kinds config gguf ...] [--num 1000] [--seed 0] [--timeout 60]

Run from the root of a checkout. Each kind of input runs in a process of its own, which takes the seeds one after
another; a process that dies, or is silent for longer than `--timeout` seconds, is reported with its seed, and the next
process continues behind it. `--kinds config --seed 17 --num 1` repeats one input.

Prints one line per kind and every failure. Exit status 1 if there was one. Write kinds of your own: see `kinds.py`.
"""

import argparse
import sys

from benchmarks.fuzz.driver import Tally, run_kind
from benchmarks.fuzz.kinds import KINDS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--kinds", nargs="+", choices=sorted(KINDS), default=sorted(KINDS))
    parser.add_argument("--num", type=int, default=1000, help="inputs of each kind")
    parser.add_argument("--seed", type=int, default=0, help="the first input's seed; the others follow it")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds that one input may take")
    options = parser.parse_args()
    tallies: list[Tally] = []
    for kind in options.kinds:
        tally = run_kind(kind, range(options.seed, options.seed + options.num), options.timeout)
        tallies.append(tally)
        print(tally.line(), flush=True)
        for failure in tally.failures:
            print(f"  {kind} --seed {failure.seed}: {failure.reason}", flush=True)
    total = sum(len(tally.failures) for tally in tallies)
    print(f"{sum(tally.count for tally in tallies)} inputs, {total} failures")
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
