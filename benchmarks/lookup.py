"""Measure the n-gram and suffix indices per request and step, and compare the suffix drafts with Arctic's.

    python benchmarks/lookup.py [--arctic-python ENV/bin/python] [--contexts 512 2048 8192] [--caches 0 100 1000 10000]

A step appends the 1 to 4 tokens that were committed and asks for a draft. Times are microseconds on one thread, Python
included: medians, the 10th percentile (what a busy machine would show if it were idle) and the 99th. With
`--arctic-python`, an interpreter that has arctic-inference, the same streams go through its suffix cache in a
subprocess, request by request in turn with ours, and the drafts are compared step by step:

- `equal`: the same tokens and parents;
- `tied`: other tokens of the same counts; the scores agree;
- `other`: other scores. In path mode that follows from a tie as well: two tied tokens may lead to different counts.

The last line of stdout is JSON, with the first example of each difference.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from lookup_driver import Drafts, Plan, Trace, Workload, drive, prime
from numpy.typing import NDArray

from outrider.proposers.lookup.ngram_index import NgramIndex
from outrider.proposers.lookup.suffix_index import SuffixCache


class OurCache:
    """Our suffix cache under the driver's names."""

    def __init__(self, work: Workload, cached: int) -> None:
        self._work = work
        self._cache = SuffixCache(work.depth, cached)

    def open(self, name: int, prompt: NDArray[np.int32]) -> None:
        self._cache.open(name, prompt)

    def append(self, name: int, tokens: list[int]) -> None:
        self._cache.append(name, tokens)

    def draft(self, name: int, context: NDArray[np.int32], tree: bool) -> Drafts:
        work = self._work
        mode = "tree" if tree else "path"
        found = self._cache.speculate(name, work.max_spec_tokens, 1.0, 0.0, work.min_token_prob, mode)
        return Drafts(found.tokens.tolist(), found.parents.tolist(), found.score)

    def close(self, name: int) -> None:
        self._cache.close(name)

    def memory(self) -> int:
        return self._cache.memory_bytes


class Arctic:
    """The other interpreter, asked one line at a time."""

    def __init__(self, python: Path) -> None:
        command = [str(python), str(Path(__file__).with_name("lookup_driver.py"))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def request(self, number: int) -> Trace:
        answer = self.ask({"request": number})
        for mode in ("path", "tree"):
            answer[mode] = [Drafts(*draft) for draft in answer[mode]]
        return Trace(**answer)


def ngram_us(plan: Plan, number: int) -> list[float]:
    """Return microseconds per step of the n-gram index, n in [2, 4], on the same request."""
    document, end = plan.documents[number], plan.context
    index, times = NgramIndex(2, 4), []
    index.extend(document[:end])
    for stride in plan.strides[number].tolist():
        tokens = document[end : end + stride].tolist()
        end += stride
        begin = time.perf_counter()
        index.extend(tokens)
        index.draft(8, "latest")
        times.append((time.perf_counter() - begin) * 1e6)
    return times


def timing(traces: list[Trace]) -> dict[str, float]:
    appended = np.concatenate([trace.append_us for trace in traces])
    drafted = np.concatenate([trace.draft_us for trace in traces])
    return {
        "append_us": float(np.median(appended)),
        "draft_us": float(np.median(drafted)),
        "step_us": float(np.median(appended + drafted)),
        "step_p10_us": float(np.percentile(appended + drafted, 10)),
        "step_p99_us": float(np.percentile(appended + drafted, 99)),
        "open_ms": float(np.median([trace.open_us for trace in traces])) / 1e3,
        "accepted": float(np.mean([accepted for trace in traces for accepted in trace.accepted])),
    }


def agreement(ours: list[Trace], theirs: list[Trace], mode: str) -> dict[str, Any]:
    """Return the shares of steps with equal, tied and otherwise different drafts, with an example of each."""
    counts, examples = {"equal": 0, "tied": 0, "other": 0}, {}
    for request, (own, other) in enumerate(zip(ours, theirs, strict=True)):
        for step, (a, b) in enumerate(zip(getattr(own, mode), getattr(other, mode), strict=True)):
            same = a.tokens == b.tokens and a.parents == b.parents
            kind = "equal" if same else "tied" if abs(a.score - b.score) < 1e-5 else "other"
            counts[kind] += 1
            if not same:
                examples.setdefault(kind, {"request": request, "step": step, "ours": a, "arctic": b})
    total = sum(counts.values())
    return {kind: count / total for kind, count in counts.items()} | {"examples": examples}


def measure(work: Workload, context: int, cached: int, requests: int, arctic: Arctic | None) -> dict[str, Any]:
    plan = Plan(work, context, cached, requests)
    cache = OurCache(work, cached)
    row: dict[str, Any] = {"context": context, "cached": cached}
    ours, theirs = [], []
    row["prime_us"] = prime(cache, plan)
    row["memory_mb"] = cache.memory() / 1e6
    if arctic:
        setting = {"work": asdict(work), "context": context, "cached": cached, "requests": requests}
        answer = arctic.ask({"prime": setting})
        row |= {"arctic_prime_us": answer["prime_us"], "arctic_memory_mb": answer["memory"] / 1e6}
    row["ngram_us"] = float(np.median([ngram_us(plan, number) for number in range(requests)]))
    for number in range(requests):
        ours.append(drive(cache, plan, number))
        if arctic:
            theirs.append(arctic.request(number))
    row |= timing(ours)
    if arctic:
        row |= {f"arctic_{key}": value for key, value in timing(theirs).items()}
        row |= {mode: agreement(ours, theirs, mode) for mode in ("path", "tree")}
    return row


def show(rows: list[dict[str, Any]]) -> None:
    columns = [
        "context",
        "cached",
        "ngram_us",
        "append_us",
        "draft_us",
        "step_us",
        "step_p10_us",
        "step_p99_us",
        "open_ms",
        "prime_us",
    ]
    columns += ["memory_mb", "accepted"]
    if "arctic_step_us" in rows[0]:
        columns += [f"arctic_{name}" for name in columns[3:]]
    for name in columns:
        print(f"{name:>22} " + " ".join(f"{row[name]:>9.4g}" for row in rows))
    for mode in ("path", "tree") if "path" in rows[0] else ():
        for kind in ("equal", "tied", "other"):
            print(f"{mode + ' ' + kind:>22} " + " ".join(f"{row[mode][kind]:>9.2%}" for row in rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arctic-python", type=Path)
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--caches", type=int, nargs="+", default=[0, 100, 1000, 10_000])
    parser.add_argument("--requests", type=int, default=4, help="measured requests per cell")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    work = Workload(seed=given.seed)
    arctic = Arctic(given.arctic_python) if given.arctic_python else None
    measure(work, 128, 4, 1, arctic)  # compiles, or loads what was compiled
    rows = []
    for cached in given.caches:
        for context in given.contexts:
            rows.append(measure(work, context, cached, given.requests, arctic))
            print(f"context {context}, {cached} cached: {rows[-1]['step_us']:.1f} us per step", file=sys.stderr)
    show(rows)
    print(json.dumps({"benchmark": "lookup", "workload": asdict(work), "rows": rows}))


if __name__ == "__main__":
    main()
