"""Keys and values in int8: what they cost in quality, and what they save in time.

    python benchmarks/int8_cache.py quality [--contexts 128,1024,4096] [--windows 4] [--rows 256]
    python benchmarks/int8_cache.py acceptance [--method eagle3] [--category chat] [--prompts 2] [--length 2048]
    python benchmarks/int8_cache.py speed [--contexts 512,1024,2048,4096,7936] [--rows 1,4] [--repeats 15]

`quality` compares next-token distributions with those of a cache in fp32, under the same weights: of a bf16 cache, and
of int8. The same `rows` tokens of each window of a text are predicted behind contexts of every length. The text is
Python's language reference, which comes with Python.

`acceptance` runs a head of the target with both kinds of cache, on prompts of a category and on questions behind
`length` tokens of that text. With each, text with drafts must equal plain decoding's.

`speed` times the step of plain decoding and of a verified chain, taking turns between the two caches. The last line is
JSON.

Example: `python benchmarks/int8_cache.py speed --contexts 1024,8000 --rows 1 --repeats 9`.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pydoc_data import topics
from typing import Any

import outrider
from outrider.data.dialogue import Dialogue
from outrider.data.workloads import load_category
from outrider.draft import Draft
from outrider.metrics import StepRecord, summarize
from outrider.proposers.method_spec import load_method, method_specs
from outrider.quality.compare import Passage, compare
from outrider.target import Target
from outrider.targets import load_target

KINDS = ("auto", "int8")
QUESTION = "\n\nWhat do the pages above say? Explain the most important rules in your own words."


def reference_text(target: Target) -> list[int]:
    text = "\n\n".join(text for _, text in sorted(topics.topics.items()) if len(text) > 3000)
    tokens: list[int] = target.tokenizer.encode(text, verbose=False)
    return tokens


def quality(options: argparse.Namespace) -> Any:
    exact = load_target(options.target, dtype="float32", weights=options.weights)
    caches = {
        "bf16": load_target(options.target, weights=options.weights),
        "int8": load_target(options.target, weights=options.weights, kv_dtype="int8"),
    }
    tokens, longest = reference_text(exact), max(options.contexts)
    ends = [longest + (len(tokens) - longest - options.rows) * n // options.windows for n in range(options.windows)]
    print(f"weights {exact.spec.weights}, {options.windows} windows of {options.rows} tokens, against a cache in fp32")
    print("context  cache  bytes/token  same most probable   KL, nats   perplexity")
    lines = []
    for context in options.contexts:
        passages = [Passage(tokens[end - context : end + options.rows], context) for end in ends]
        for name, target in caches.items():
            found = compare(exact, target, passages)
            size = target.plan(1, 8, 1).bytes_per_token
            print(
                f"{context:7}  {name:5}  {size:11,}  {found.agreement:18.2%}   {found.kl:8.6f}   "
                f"{found.perplexity:.4f} ({found.reference_perplexity:.4f})",
                flush=True,
            )
            lines.append({"context": context, "cache": name, "kl": found.kl, "agreement": found.agreement})
    return lines


def acceptance(options: argparse.Namespace) -> Any:
    targets = {kind: load_target(options.target, weights=options.weights, kv_dtype=kind) for kind in KINDS}
    tokenizer, text = targets["auto"].tokenizer, reference_text(targets["auto"])
    starts = [len(text) * n // (options.prompts + 1) for n in range(options.prompts)]
    prompts: dict[str, Sequence[Any]] = {
        options.category: [
            Dialogue(one).ask(0, tokenizer) for one in load_category(options.category)[: 4 * options.prompts]
        ],
        f"behind {options.length}": [tokenizer.decode(text[at : at + options.length]) + QUESTION for at in starts],
    }
    params = outrider.SamplingParams(max_tokens=options.tokens)
    lines = []
    for name, some in prompts.items():
        answers = {}
        for kind, target in targets.items():
            taken: list[Any] = []
            for method in ("none", options.method):
                proposer = load_method(method_specs([method])[0], target)
                engine = outrider.Engine(target, proposer, record=taken.append)
                taken.clear()
                answers[kind, method] = [answer.tokens for answer in engine.generate(list(some), params)]
            assert answers[kind, "none"] == answers[kind, options.method], f"{kind}: the text depends on the method"
            steps = summarize([record for record in taken if isinstance(record, StepRecord)])
            rates = " ".join(f"{rate:.3f}" for rate in steps.conditional_acceptance_per_pos)
            tau = steps.tokens_per_target_forward
            print(f"{name:12}  {kind:4}  {options.method}  tau {tau:.3f}  right by depth {rates}", flush=True)
            lines.append({"prompts": name, "kv_dtype": kind, "tau": tau, "steps": steps.num_steps})
        same = sum(a == b for a, b in zip(answers["auto", "none"], answers["int8", "none"], strict=True))
        print(f"{name:12}  {same} of {len(some)} texts of int8 are those of {targets['auto'].spec.dtype}")
    return lines


def speed(options: argparse.Namespace) -> Any:
    lines = []
    print("context  rows   bf16 ms   int8 ms   bf16 / int8")
    targets = {kind: load_target(options.target, weights=options.weights, kv_dtype=kind) for kind in KINDS}
    for context in options.contexts:
        sessions = {}
        for kind, target in targets.items():
            sessions[kind] = target.open(target.plan(1, context + 64, max(options.rows)))
            sessions[kind].cache.pretend([0], [context])
        times: dict[tuple[str, int], list[float]] = {(kind, rows): [] for kind in KINDS for rows in options.rows}
        with targets["auto"].decoding_threads():
            for repeat in range(options.repeats + 2):
                for rows in options.rows:
                    for kind in KINDS[:: -1 if repeat % 2 else 1]:
                        draft = Draft.of_chains([list(range(rows - 1))])
                        start = time.perf_counter()
                        sessions[kind].forward([0], [77], draft)
                        if repeat >= 2:
                            times[kind, rows].append(time.perf_counter() - start)
        for rows in options.rows:
            plain, codes = (1e3 * statistics.median(times[kind, rows]) for kind in KINDS)
            ratio = statistics.median(a / b for a, b in zip(times["auto", rows], times["int8", rows], strict=True))
            print(f"{context:7}  {rows:4}  {plain:8.2f}  {codes:8.2f}  {ratio:12.3f}", flush=True)
            lines.append({"context": context, "rows": rows, "bf16_ms": plain, "int8_ms": codes, "ratio": ratio})
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("quality", "acceptance", "speed"))
    parser.add_argument("--target", default="smollm2-135m")
    parser.add_argument("--weights", default="stored")
    parser.add_argument("--contexts")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--rows")
    parser.add_argument("--method", default="eagle3")
    parser.add_argument("--category", default="chat")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    if options.part == "speed":
        options.rows = [int(number) for number in (options.rows or "1,4").split(",")]
        options.contexts = [int(number) for number in (options.contexts or "512,1024,2048,4096,7936").split(",")]
    else:
        options.rows = int(options.rows or 256)
        options.contexts = [int(number) for number in (options.contexts or "128,512,1024,2048,4096,6144").split(",")]
    parts = {"quality": quality, "acceptance": acceptance, "speed": speed}
    print(json.dumps({"part": options.part, "lines": parts[options.part](options)}))


if __name__ == "__main__":
    main()
