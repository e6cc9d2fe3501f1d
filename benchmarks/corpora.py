"""Corpora on disk: what yesterday's answers save today, and what 100 MB of text cost at the start and per step.

    python benchmarks/corpora.py                  the embedded model: cold, warm, and with a file of yesterday's answers
    python benchmarks/corpora.py --megabytes 100  and a corpus of so much Python source of this environment

Yesterday every prompt was answered once. Today each comes again, changed: a file with one more line and another
instruction ("edit"), or the same task with a note of what went wrong ("retry"). Cells of a prompt run one after the
other, in turns, and a first round warms up; all texts of a prompt must be equal. Ratios are to plain decoding of the
same run.

    cold     suffix decoding that looks up the request's own text alone
    warm     the same process answered yesterday's prompts before, untimed
    corpus   a new process's state, with the file that yesterday's process saved
"""

import argparse
import json
import math
import random
import statistics
import sys
import sysconfig
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import outrider
from outrider.metrics import StepRecord, summarize
from outrider.proposers.corpus.build import build
from outrider.proposers.corpus.store import Corpus

WORKLOADS = Path(__file__).parents[1] / "workloads"
CATEGORIES = ("editing", "code")
NOTE = "\n\nThis was tried before, and a test failed. Write the whole answer again, with care."


def changed(prompt: str, place: int) -> str:
    """Return today's form of yesterday's prompt: a retry, or an edit of its text."""
    if place % 2:
        return prompt + NOTE
    lines = prompt.split("\n")
    middle = len(lines) // 2
    return "\n".join([*lines[:middle], "", *lines[middle:]]) + "\nAnswer with the whole result."


def prompts(count: int) -> list[str]:
    found = []
    for category in CATEGORIES:
        rows = (WORKLOADS / f"{category}.jsonl").read_text(encoding="utf-8").splitlines()
        found += [json.loads(row)["turns"][0] for row in rows[:count]]
    return found


def save(target: outrider.Target, path: Path, texts: Sequence[str], params: outrider.SamplingParams) -> None:
    """Answer yesterday's prompts in a session that saves them."""
    engine = outrider.Engine(target, outrider.load_proposer("suffix", target, save=str(path)), max_len=2048)
    engine.generate(list(texts), params)
    engine.close()


def race(target: outrider.Target, count: int, rounds: int, length: int) -> list[dict[str, Any]]:
    params = outrider.SamplingParams(max_tokens=length)
    yesterday = prompts(count)
    records: list[StepRecord] = []
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "yesterday.corpus"
        save(target, path, yesterday, params)
        proposers = {
            "plain": outrider.load_proposer("none", target),
            "cold": outrider.load_proposer("suffix", target, max_cached_requests=0),
            "warm": outrider.load_proposer("suffix", target),
            "corpus": outrider.load_proposer("suffix", target, max_cached_requests=0, corpus=str(path)),
        }
        engines = {
            name: outrider.Engine(
                target,
                proposer,
                max_len=2048,
                prefix_cache_bytes=0,
                record=lambda record: records.append(record) if isinstance(record, StepRecord) else None,
            )
            for name, proposer in proposers.items()
        }
        seconds: dict[tuple[str, int], list[float]] = defaultdict(list)
        steps: dict[tuple[str, int], list[StepRecord]] = {}
        engines["warm"].generate(yesterday, params)
        for turn in range(rounds + 1):
            for place, prompt in enumerate(yesterday):
                texts = set()
                for name in list(engines) if turn % 2 else list(engines)[::-1]:
                    if name == "warm" and turn:
                        # today's own answers of earlier rounds must not help
                        engines[name].reset()
                        engines[name].generate([prompt], params)
                    records.clear()
                    start = perf_counter()
                    [answer] = engines[name].generate(changed(prompt, place), params)
                    took = perf_counter() - start
                    texts.add(answer.text)
                    if turn:
                        seconds[name, place].append(took)
                    steps[name, place] = list(records)
                if len(texts) != 1:
                    sys.exit(f"prompt {place} has {len(texts)} texts: {texts}")
    kinds = {"edit": range(0, len(yesterday), 2), "retry": range(1, len(yesterday), 2)}
    return [row_of(name, kind, places, seconds, steps) for kind, places in kinds.items() for name in engines]


def row_of(name: str, kind: str, places: Sequence[int], seconds: Any, steps: Any) -> dict[str, Any]:
    logs = [
        math.log(statistics.median(seconds["plain", place]) / statistics.median(seconds[name, place]))
        for place in places
    ]
    summary = summarize([step for place in places for step in steps[name, place]])
    return {
        "traffic": kind,
        "cell": name,
        "prompts": len(places),
        "tokens": summary.num_emitted_tokens,
        "tau": summary.tokens_per_target_forward,
        "speedup_end_to_end": math.exp(statistics.fmean(logs)),
    }


def large(megabytes: int, target: str) -> dict[str, Any]:
    """Build a corpus of this environment's Python source; time its build, its opening and its drafts."""
    left = megabytes * 10**6
    files = []
    for file in sorted(Path(sysconfig.get_paths()["purelib"]).rglob("*.py")):
        if left <= 0:
            break
        if b"\0" not in (content := file.read_bytes()):
            try:
                content.decode("utf-8")
            except UnicodeDecodeError:
                continue
            files.append(file)
            left -= len(content)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "large.corpus"
        start = perf_counter()
        built = build(files, path, target)
        took = perf_counter() - start
        Corpus.open(path).index.speculate([1, 2, 3], 16, max_match=23)  # compiles
        start = perf_counter()
        corpus = Corpus.open(path)
        opened = perf_counter() - start
        tokens_N = corpus.index.tokens_N
        rng = random.Random(0)
        times: dict[str, list[float]] = defaultdict(list)
        for _ in range(2000):
            at = rng.randrange(len(tokens_N) - 24)
            known = tokens_N[at : at + 24].copy()
            strange = known.copy()
            strange[-3] = rng.randrange(corpus.vocabulary.size)
            for kind, context in (("known", known), ("strange", strange)):
                start = perf_counter()
                corpus.index.speculate(context, 16, max_match=23)
                times[kind].append(perf_counter() - start)
    return {
        "megabytes_of_text": megabytes,
        "num_files": len(files),
        **built.plain(),
        "build_s": took,
        "open_ms": 1e3 * opened,
        **{f"draft_{kind}_us_p{q}": 1e6 * _quantile(some, q) for kind, some in times.items() for q in (50, 99)},
    }


def _quantile(values: Sequence[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="smollm2-135m")
    parser.add_argument("--prompts", type=int, default=5, help="of each category; 0 leaves the race out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--length", type=int, default=160)
    parser.add_argument("--megabytes", type=int, default=0)
    given = parser.parse_args()
    report: dict[str, Any] = {"schema": "outrider.corpora/1", "target": given.target}
    if given.prompts:
        report["rows"] = race(outrider.load_target(given.target), given.prompts, given.rounds, given.length)
        print("| Traffic | Cell | Prompts | Tokens | tau | Times as fast as plain, prompts included |")
        print("|---|---|---|---|---|---|")
        for row in report["rows"]:
            print(
                f"| {row['traffic']} | {row['cell']} | {row['prompts']} | {row['tokens']} | {row['tau']:.2f} "
                f"| {row['speedup_end_to_end']:.2f} |"
            )
    if given.megabytes:
        report["large"] = large(given.megabytes, given.target)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
