"""llama.cpp as a target against our own decoder on the same GGUF file, and against its Python bindings alone.

    python benchmarks/llama_target.py [--target smollm2-135m] [--methods suffix eagle3] [--prompts 4] [--rounds 3]

Every cell answers the same prompts greedily, one request at a time and in turns, with OUTRIDER_NUM_THREADS threads:

    native        our decoder and loop
    llama_cpp     llama.cpp under our loop, `backend="llama_cpp"`
    bindings      plain decoding by `llama_cpp.Llama` alone, as its users run it

A cell's figure is the geometric mean over the prompts of (seconds per token of native plain decoding / those of the
cell), prompts included; seconds are medians over the rounds, after one that warms up. Native and llama.cpp round
activations differently, so their texts may part; within a cell every round must give the same text.

Example: 1.5 beside `llama_cpp eagle3` says that a token takes two thirds of the time of our plain decoding.
"""

import argparse
import json
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import outrider
from outrider.kernels.torch_threads import num_threads
from outrider.proposers.method_spec import load_method, method_specs
from outrider.requests.text import encode

WORKLOADS = Path(__file__).parents[1] / "workloads"
CATEGORIES = ("chat", "code", "editing")
MOST_POSITIONS = 2048
"""Positions of every cell's cache."""

Answer = Callable[[str], tuple[int, ...]]
"""From a prompt to the tokens of its answer."""


def engine_answer(target: outrider.Target, spec: Any, length: int) -> Answer:
    engine = outrider.Engine(target, load_method(spec, target), max_len=MOST_POSITIONS, prefix_cache_bytes=0)
    params = outrider.SamplingParams(max_tokens=length)

    def answer(prompt: str) -> tuple[int, ...]:
        engine.reset()  # lookups must not know the last round's answer
        return tuple(engine.generate([prompt], params)[0].tokens)

    return answer


def bindings_answer(target: outrider.Target, length: int) -> Answer:
    """Return plain greedy decoding by the bindings' own object, on the ids that our cells read."""
    import llama_cpp

    threads = num_threads()
    model = llama_cpp.Llama(
        target.spec.source, n_ctx=MOST_POSITIONS, n_threads=threads, n_threads_batch=threads, verbose=False
    )

    def answer(prompt: str) -> tuple[int, ...]:
        model.reset()
        found: list[int] = []
        for token in model.generate(encode(target.tokenizer, prompt), temp=0.0, repeat_penalty=1.0):
            found.append(token)
            if token in target.spec.eos_ids or len(found) == length:
                return tuple(found)
        return tuple(found)

    return answer


def cells_of(name: str, methods: list[str], length: int) -> dict[str, Answer]:
    targets = {backend: outrider.load_target(name, backend=backend) for backend in ("native", "llama_cpp")}
    found = {
        f"{backend} {spec.label}": engine_answer(target, spec, length)
        for backend, target in targets.items()
        for spec in method_specs(["none", *methods])
    }
    return {**found, "bindings": bindings_answer(targets["llama_cpp"], length)}


def prompts_of(count: int) -> dict[str, list[str]]:
    rows = {name: (WORKLOADS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines() for name in CATEGORIES}
    return {name: [json.loads(line)["turns"][0] for line in lines[:count]] for name, lines in rows.items()}


def measure(cells: dict[str, Answer], prompts: dict[str, list[str]], rounds: int) -> list[dict[str, Any]]:
    seconds: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    texts: dict[tuple[str, str, int], tuple[int, ...]] = {}
    for turn in range(rounds + 1):
        for category, some in prompts.items():
            for place, prompt in enumerate(some):
                for cell in list(cells)[:: -1 if turn % 2 else 1]:
                    start = perf_counter()
                    tokens = cells[cell](prompt)
                    took = perf_counter() - start
                    if texts.setdefault((cell, category, place), tokens) != tokens:
                        sys.exit(f"{cell} gives another text of prompt {place} of {category} in another round")
                    if turn:
                        seconds[cell, category, place].append(took)
            print(f"round {turn} of {rounds}: {category}", file=sys.stderr)
    return [row_of(cell, category, len(some), seconds, texts) for category, some in prompts.items() for cell in cells]


def row_of(cell: str, category: str, count: int, seconds: Any, texts: Any) -> dict[str, Any]:
    def log_ratio(base: str, place: int) -> float:
        times = [statistics.median(seconds[name, category, place]) for name in (base, cell)]
        lengths = [len(texts[name, category, place]) for name in (base, cell)]
        return math.log((times[0] / lengths[0]) / (times[1] / lengths[1]))

    plain = f"{cell.split()[0]} none" if " " in cell else "llama_cpp none"
    equal = sum(texts[cell, category, place] == texts[plain, category, place] for place in range(count))
    return {
        "category": category,
        "cell": cell,
        "times_native_plain": math.exp(statistics.fmean(log_ratio("native none", at) for at in range(count))),
        "times_own_plain": math.exp(statistics.fmean(log_ratio(plain, at) for at in range(count))),
        "texts_equal_own_plain": equal,
        "texts": count,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="smollm2-135m")
    parser.add_argument("--methods", nargs="*", default=["suffix", "eagle3"])
    parser.add_argument("--prompts", type=int, default=3, help="of each category")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128)
    given = parser.parse_args()
    cells = cells_of(given.target, given.methods, given.tokens)
    rows = measure(cells, prompts_of(given.prompts), given.rounds)
    print("| Prompts | Cell | Times native plain | Times plain of the same back end | Texts equal to that |")
    print("|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['category']} | {row['cell']} | {row['times_native_plain']:.2f} | {row['times_own_plain']:.2f} "
            f"| {row['texts_equal_own_plain']} of {row['texts']} |"
        )
    print(json.dumps({"schema": "outrider.llama_target/1", "target": given.target, "rows": rows}))


if __name__ == "__main__":
    main()
