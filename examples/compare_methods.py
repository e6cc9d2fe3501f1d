"""Compare methods on one set of prompts: tokens per target forward (tau), and time against plain decoding.

    python examples/compare_methods.py                                   the embedded target and its shipped heads
    python examples/compare_methods.py DIR ngram draft_model:layers=0    another target and other methods

`outrider bench` measures the same with repeats, intervals and a check of every answer.
"""

import sys
from collections.abc import Sequence
from typing import NamedTuple

from outrider import Engine, SamplingParams, Target, load_target
from outrider.metrics import PrefillRecord, StepRecord, summarize
from outrider.proposers.method_spec import load_method, method_specs

PROMPTS = (
    "Why is the sky blue?",
    "Write a Python function that returns the n-th Fibonacci number.",
    "Repeat this sentence three times: the quick brown fox jumps over the lazy dog.",
)
METHODS = ("ngram", "suffix", "medusa", "eagle3", "hybrid")


class Measured(NamedTuple):
    """One method's figures: tokens per target forward, seconds of decoding, and the answers' tokens."""

    tau: float
    seconds: float
    answers: list[tuple[int, ...]]


def measure(target: Target, method: str, prompts: Sequence[str], max_tokens: int) -> Measured:
    """Answer the prompts greedily with one method."""
    steps: list[StepRecord] = []

    def keep(record: StepRecord | PrefillRecord) -> None:
        if isinstance(record, StepRecord):
            steps.append(record)

    (spec,) = method_specs([method])
    engine = Engine(target, load_method(spec, target), record=keep)
    params = SamplingParams(max_tokens=max_tokens)
    engine.generate(prompts[:1], params)  # kernels are compiled, or loaded, by the first answer
    engine.reset()
    steps.clear()
    answers = [tuple(answer.tokens) for answer in engine.generate(prompts, params)]
    summary = summarize(steps)
    return Measured(summary.tokens_per_target_forward or 1.0, summary.decode_s, answers)


def compare(target: Target, methods: Sequence[str], prompts: Sequence[str] = PROMPTS, max_tokens: int = 64) -> None:
    """Print one line per method."""
    plain = measure(target, "none", prompts, max_tokens)
    print(f"{'method':24}{'tau':>6}{'ms/token':>10}{'speedup':>9}  same text")
    for method in ("none", *methods):
        found = plain if method == "none" else measure(target, method, prompts, max_tokens)
        per_token = 1000 * found.seconds / sum(map(len, found.answers))
        same = "yes" if found.answers == plain.answers else "no"
        print(f"{method:24}{found.tau:6.2f}{per_token:10.2f}{plain.seconds / found.seconds:8.2f}x  {same}")


if __name__ == "__main__":
    name, *chosen = sys.argv[1:] or ["smollm2-135m"]
    compare(load_target(name), chosen or METHODS)
