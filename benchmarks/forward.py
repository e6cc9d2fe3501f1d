"""Measure what a step of the embedded target costs by number of rows: the forward that verifies a chain.

    python benchmarks/forward.py [--rows 1,2,4,6,8,16] [--cached 200] [--repeats 31]

The real model through the path that the engine takes, one slot. Row counts are interleaved and the median is printed,
with its ratio to one row. Beside it stands what the arithmetic alone would cost: two operations per weight and row, at
the rate that the same kernels reach on a prompt. The last line is JSON.
"""

import argparse
import json
import statistics
import time

from outrider.draft import Draft
from outrider.targets import load_target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="1,2,4,6,8,16")
    parser.add_argument("--cached", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=31)
    options = parser.parse_args()
    rows = [int(number) for number in options.rows.split(",")]
    target = load_target("smollm2-135m", dtype="bfloat16")
    session = target.open(target.plan(1, options.cached + 512, max(rows)))
    samples: dict[int, list[float]] = {number: [] for number in rows}
    prompts: list[float] = []
    with target.hosting():
        for repeat in range(options.repeats + 2):
            if repeat % 8 == 0:
                session.cache.reset(0)
                start = time.perf_counter()
                session.prefill([0], [list(range(100, 612))])
                prompts.append(time.perf_counter() - start)
                session.cache.truncate(0, options.cached)
            for number in rows:
                draft = Draft.of_chains([list(range(number - 1))])
                start = time.perf_counter()
                session.forward([0], [77], draft)
                if repeat >= 2:
                    samples[number].append(time.perf_counter() - start)
    times = {number: statistics.median(some) for number, some in samples.items()}
    per_row = statistics.median(prompts) / 512
    for number, seconds in times.items():
        floor = number * per_row
        print(
            f"{number:4} rows  {1e3 * seconds:6.2f} ms  {seconds / times[rows[0]]:5.2f}x   "
            f"arithmetic alone {1e3 * floor:6.2f} ms  {floor / times[rows[0]]:5.2f}x"
        )
    print(json.dumps({"cached": options.cached, "forward_s": times, "prompt_row_s": per_row}))


if __name__ == "__main__":
    main()
