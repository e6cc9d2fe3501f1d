"""Keys and values in int8: what they cost in quality, and what they save in time.

    python benchmarks/int8_cache.py quality [--contexts 128,1024,4096] [--windows 4] [--rows 256]
    python benchmarks/int8_cache.py acceptance [--method eagle3] [--categories chat ...] [--prompts 8] [--length 2048]
    python benchmarks/int8_cache.py speed [--contexts 512,1024,2048,4096,7936] [--rows 1,4] [--repeats 15]

`quality` compares next-token distributions with those of a cache in fp32, under the same weights: of a bf16 cache, and
of int8. The same `rows` tokens of each window of a text are predicted behind contexts of every length. The text is
Python's language reference, which comes with Python.

`acceptance` runs a head of the target with both kinds of cache, on prompts of each category and on questions behind
`length` tokens of that text. With each, text with drafts must equal plain decoding's. The two caches write different
texts, so tau (geometric mean over prompts) differs by chance too: its ratio has a paired 95 % interval.

`speed` times the step of plain decoding and of a verified chain, taking turns between the two caches. The last line is
JSON.

Example: `python benchmarks/int8_cache.py speed --contexts 1024,8000 --rows 1 --repeats 9`.
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pydoc_data import topics
from typing import Any

import outrider
from outrider.data.dialogue import Dialogue
from outrider.data.workloads import CATEGORIES, load_category
from outrider.draft import Draft
from outrider.metrics import StepRecord, summarize
from outrider.proposers.method_spec import load_method, method_specs
from outrider.quality.compare import Passage, compare
from outrider.results.statistics import paired_speedup
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
        category: [Dialogue(one).ask(0, tokenizer) for one in load_category(category)[: options.prompts]]
        for category in options.categories
    }
    prompts[f"behind {options.length}"] = [tokenizer.decode(text[at : at + options.length]) + QUESTION for at in starts]
    lines, all_steps = [], dict[str, list[float]]()
    for name, some in prompts.items():
        per_token, texts = dict[str, list[float]](), {}
        for kind, target in targets.items():
            per_token[kind], texts[kind] = drafted(target, options.method, some, options.tokens)
            all_steps.setdefault(kind, []).extend(per_token[kind])
        same = sum(a == b for a, b in zip(texts["auto"], texts["int8"], strict=True))
        lines.append(compared(name, per_token) | {"prompts": len(some), "same_texts": same})
    lines.append(compared("all", all_steps) | {"prompts": len(all_steps["auto"])})
    return lines


def drafted(
    target: Target, method: str, prompts: Sequence[Any], num_tokens: int
) -> tuple[list[float], list[tuple[int, ...]]]:
    """Return steps per token and the text of each prompt, after comparing the text with plain decoding's."""
    records: list[Any] = []
    plain = outrider.Engine(target, outrider.load_proposer("none", target))
    engine = outrider.Engine(target, load_method(method_specs([method])[0], target), record=records.append)
    params = outrider.SamplingParams(max_tokens=num_tokens)
    per_token, texts = [], []
    for prompt in prompts:
        records.clear()
        [answer] = engine.generate([prompt], params)
        assert answer.tokens == plain.generate([prompt], params)[0].tokens, "the text depends on the method"
        steps = summarize([record for record in records if isinstance(record, StepRecord)])
        per_token.append(1 / steps.tokens_per_target_forward)
        texts.append(tuple(answer.tokens))
    return per_token, texts


def compared(name: str, per_token: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Print and return tau with each cache, and the ratio over the prompts with its 95 % interval."""
    tau = {kind: statistics.geometric_mean(1 / steps for steps in found) for kind, found in per_token.items()}
    ratio = paired_speedup([[steps] for steps in per_token["auto"]], [[steps] for steps in per_token["int8"]])
    print(
        f"{name:12}  {len(per_token['auto']):3} prompts  tau {tau['auto']:.3f}, int8 {tau['int8']:.3f}  ratio"
        f" {ratio.point:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]",
        flush=True,
    )
    return {"name": name, "tau": tau, "ratio": [ratio.point, ratio.low, ratio.high]}


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
    parser.add_argument("--categories", nargs="+", default=list(CATEGORIES), choices=CATEGORIES)
    parser.add_argument("--prompts", type=int, default=8, help="of each category")
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
