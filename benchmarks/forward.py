"""Measure what a step of the embedded target costs by number of rows: the forward that verifies a chain.

    python benchmarks/forward.py [--rows 1,2,4,6,8,16] [--cached 200] [--repeats 31] [--kinds]

The real model through the path that the engine takes, one slot. Row counts are interleaved and the median is printed,
with its ratio to one row. Beside it stands what the arithmetic alone would cost: two operations per weight and row, at
the rate that the same kernels reach on a prompt. With `--kinds`, the kernels of one recorded forward are then run one
by one and their times added up by kind, products and attention; each is launched by itself, which adds some
microseconds to each of 151. The last line is JSON.
"""

import argparse
import json
import statistics
import time

import numpy as np

from outrider.draft import Draft
from outrider.kernels.cpu.attention import attention
from outrider.kernels.cpu.threads import launch_all
from outrider.ops.cpu_graphs import CpuGraph
from outrider.ops.cpu_placement import placement_addresses, placement_shape
from outrider.placement import place_real_rows
from outrider.targets import load_target
from outrider.targets.native import NativeSession


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="1,2,4,6,8,16")
    parser.add_argument("--cached", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--kinds", action="store_true")
    options = parser.parse_args()
    rows = [int(number) for number in options.rows.split(",")]
    target = load_target("smollm2-135m", dtype="bfloat16")
    session = target.open(target.plan(1, options.cached + 512, max(rows)))
    samples: dict[int, list[float]] = {number: [] for number in rows}
    prompts: list[float] = []
    prompt = list(range(100, 100 + max(512, options.cached)))
    with target.decoding_threads():
        for repeat in range(options.repeats + 2):
            if repeat % 8 == 0:
                session.cache.reset(0)
                start = time.perf_counter()
                session.prefill([0], [prompt])
                prompts.append(time.perf_counter() - start)
                session.cache.truncate(0, options.cached)
            for number in rows:
                draft = Draft.of_chains([list(range(number - 1))])
                start = time.perf_counter()
                session.forward([0], [77], draft)
                if repeat >= 2:
                    samples[number].append(time.perf_counter() - start)
    times = {number: statistics.median(some) for number, some in samples.items()}
    per_row = statistics.median(prompts) / len(prompt)
    for number, seconds in times.items():
        floor = number * per_row
        print(
            f"{number:4} rows  {1e3 * seconds:6.2f} ms  {seconds / times[rows[0]]:5.2f}x   "
            f"arithmetic alone {1e3 * floor:6.2f} ms  {floor / times[rows[0]]:5.2f}x"
        )
    kinds: dict[int, dict[str, float]] = {}
    if options.kinds:
        assert isinstance(session, NativeSession), "its graphs are looked into"
        graphs = {key[-1]: graph for key, graph in session._graph_cache.items()}
        with target.decoding_threads():
            kinds = {number: by_kind(session, graphs[number], number, options.repeats) for number in rows}
        for number, seconds_of in kinds.items():
            print(f"{number:4} rows  " + "   ".join(f"{kind} {1e3 * s:.2f} ms" for kind, s in seconds_of.items()))
    print(json.dumps({"cached": options.cached, "forward_s": times, "prompt_row_s": per_row, "kinds_s": kinds}))


def by_kind(session: NativeSession, graph: CpuGraph, num_rows: int, repeats: int) -> dict[str, float]:
    """Return the seconds of a forward's kernels, each the median of its runs, added up by kind."""
    placement = place_real_rows(session.cache, [0], Draft.of_chains([list(range(num_rows - 1))]))
    records, columns, numbers = graph.followed
    placed = (*placement_addresses(placement), *placement_shape(placement))
    graph.blocks_NB[records, columns] = np.array(placed)[numbers]
    runs: list[list[float]] = [[] for _ in graph.kernels_N]
    for _ in range(repeats):
        for place, samples in enumerate(runs):
            some = slice(place, place + 1)
            start = time.perf_counter()
            launch_all(graph.threads, graph.kernels_N[some], graph.blocks_NB[some])
            samples.append(time.perf_counter() - start)
    found = {"products": 0.0, "attention": 0.0}
    for address, samples in zip(graph.kernels_N, runs, strict=True):
        found["attention" if address == attention.address else "products"] += statistics.median(samples)
    return found


if __name__ == "__main__":
    main()
