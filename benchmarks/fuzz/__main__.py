"""Feed damaged inputs to Outrider: each is taken or refused with one sentence, never a traceback, a hang or a crash.

    python -m benchmarks.fuzz [--num 10000] [--kinds config gguf ...] [--seed 0] [--timeout 60] [--jobs 2]
                             [--record FILE]

Run from the root of a checkout. `--num` inputs are shared out among the kinds (`kinds.py`). Each part of them runs in a
process of its own, which takes the seeds one after another; a process that dies, is silent for longer than `--timeout`
seconds, or takes more than 2 GiB of memory, is reported with its seed, and the next process continues behind it.
`--kinds config --seed 17 --num 1` repeats one input.

`--record FILE` keeps what is finished, part by part; the same command again goes on behind it.

Prints one line per kind with its counts, seconds and peak memory, and every failure. Exit status 1 if there was one.
"""

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.fuzz.driver import MOST_BYTES, ROOT, Failure, Tally, run_kind
from benchmarks.fuzz.kinds import KINDS, shares

PART = 500
"""Inputs of one process."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--kinds", nargs="+", choices=sorted(KINDS), default=sorted(KINDS))
    parser.add_argument("--num", type=int, default=10_000, help="inputs in all")
    parser.add_argument("--seed", type=int, default=0, help="the first input's seed; the others follow it")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds that one input may take")
    parser.add_argument("--jobs", type=int, default=1, help="processes at the same time")
    parser.add_argument("--record", type=Path, help="file for finished parts, from which the same command goes on")
    options = parser.parse_args()
    facts = {"seed": options.seed, "code": _code()}
    known = {} if options.record is None else _known(options.record, facts)

    def run(kind: str, seeds: range) -> Tally:
        key = f"{kind} {seeds.start} {len(seeds)}"
        if key in known:
            return known[key]
        tally = run_kind(kind, seeds, options.timeout)
        if options.record is not None:
            _append(options.record, {"part": key, **asdict(tally)})
        return tally

    totals: list[Tally] = []
    with ThreadPoolExecutor(options.jobs) as jobs:  # threads wait for processes
        begun = {
            kind: [jobs.submit(run, kind, seeds) for seeds in _parts(options.seed, num)]
            for kind, num in shares(options.num, options.kinds).items()
        }
        try:
            for kind, parts in begun.items():
                total = Tally(kind)
                for part in parts:
                    total.join(part.result())
                totals.append(total)
                print(total.line(), flush=True)
                for failure in total.failures:
                    print(f"  {kind} --seed {failure.seed}: {failure.reason}", flush=True)
        except BaseException:
            jobs.shutdown(wait=False, cancel_futures=True)
            raise
    failures = sum(len(total.failures) for total in totals)
    seconds, peak = sum(total.seconds for total in totals), max(total.peak_bytes for total in totals)
    print(f"{sum(total.count for total in totals)} inputs, {failures} failures, {seconds:.0f} s, seed {options.seed}")
    print(f"most memory of a process: {peak >> 20} MiB, of at most {MOST_BYTES >> 20} MiB")
    print(f"{facts['code']}, Python {platform.python_version()}, {platform.platform()}")
    return 1 if failures else 0


def _parts(first: int, num: int) -> Iterator[range]:
    for begin in range(first, first + num, PART):
        yield range(begin, min(begin + PART, first + num))


def _code() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip() or "no commit"


def _known(path: Path, facts: dict[str, Any]) -> dict[str, Tally]:
    """Return the finished parts of a record, which begins with what they belong to."""
    if not path.exists():
        _append(path, facts)
        return {}
    begun, *lines = path.read_text(encoding="utf-8").splitlines()
    if json.loads(begun) != facts:
        sys.exit(f"{path} is the record of {begun}, not of {json.dumps(facts)}; give another --record")
    found = {}
    for line in lines:
        fields = json.loads(line)
        key, failures = fields.pop("part"), [Failure(**one) for one in fields.pop("failures")]
        found[key] = Tally(**fields, failures=failures)
    return found


def _append(path: Path, fields: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(fields) + "\n")


if __name__ == "__main__":
    sys.exit(main())
