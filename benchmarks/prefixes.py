"""Measure what kept beginnings and chunked prompts bring: the time to the first token, and the longest pause of others.

    python benchmarks/prefixes.py [--target smollm2-135m] [--method none] [--max-new-tokens 48] [--repeats 3]

**Turns.** The chats of the multi-turn category, all with one system message, are held with two engines, one that keeps
finished texts and one that does not. Both get every prompt, one right after the other, first in this order and then in
the other one; answers are greedy and must be equal. A row of the table is a turn: tokens of its prompts, how many of
them were known, and the ratio of the times to the first token, without kept texts over with them (geometric mean).

**Pauses.** One request writes while a prompt of `--long-prompt` tokens arrives. A pause is the time between two of its
tokens. Chunk sizes take turns; `whole` reads the prompt at once. A row is a chunk: its longest pause over that of
`whole`, and the time to the long prompt's first token over that of `whole` (medians).

All figures are ratios within one run. The last line is JSON.
"""

import json
import math
import statistics
from collections import defaultdict
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Literal

import tyro

from outrider import Engine, SamplingParams, load_target
from outrider.data.dialogue import Dialogue
from outrider.data.workloads import Conversation, load_category
from outrider.metrics import PrefillRecord, StepRecord
from outrider.proposer import Proposer
from outrider.proposers.method_spec import load_method, method_specs
from outrider.target import Target

SYSTEM = (
    "You are the assistant of a small public library. You answer questions of readers of all ages. Be friendly, be "
    "short, and use plain words. Say so when you do not know something, and never invent a title, a number or a "
    "person. Where a reader asks for advice on health, law or money, give general information and tell them whom to "
    "ask. Do not repeat the question. Write in the language of the reader. Use lists only where they help. The library "
    "is open from Tuesday to Saturday, from ten to six; it has books, games and tools, and a reading room."
)
WHOLE = 10**6


@dataclass(kw_only=True)
class Config:
    """Settings of the benchmark; `chunks` are sizes to compare with reading the prompt at once."""

    target: str = "smollm2-135m"
    method: str = "none"
    num_chats: int = 14
    max_new_tokens: int = 48
    repeats: int = 3
    long_prompt: int = 1500
    chunks: tuple[int, ...] = (64, 128, 256, 512)
    part: Literal["both", "turns", "pauses"] = "both"


class Asked:
    """An engine, its records, and the time to the first token of what it is asked."""

    def __init__(self, target: Target, proposer: Proposer, **settings: Any) -> None:
        self.records: list[StepRecord | PrefillRecord] = []
        self.engine = Engine(target, proposer, record=self.records.append, **settings)

    def ask(self, prompt: list[int], params: SamplingParams) -> tuple[float, tuple[int, ...]]:
        """Return the seconds to the first token, and all tokens."""
        self.records.clear()
        start, first, tokens = perf_counter(), math.nan, []
        self.engine.add(prompt, params)
        for event in self.engine.run():
            first = perf_counter() - start if not tokens else first
            tokens += event.tokens
        return first, tuple(tokens)

    @property
    def num_cached(self) -> int:
        """Known tokens of the last prompt."""
        return sum(sum(one.cached_tokens) for one in self.records if isinstance(one, PrefillRecord))


def turns(target: Target, proposer: Proposer, config: Config) -> list[dict[str, float]]:
    """Hold the chats, and return a row for each turn."""
    engines = {
        "kept": Asked(target, proposer, max_len=2048, prefix_cache_bytes=2**28),
        "whole": Asked(target, proposer, max_len=2048, prefix_cache_bytes=0),
    }
    params = SamplingParams(max_tokens=config.max_new_tokens)
    for engine in engines.values():
        engine.ask(list(range(40)), params)
    found: dict[int, list[tuple[int, int, float]]] = defaultdict(list)
    for repeat in range(config.repeats):
        for engine in engines.values():
            engine.engine.reset()
        for number, chat in enumerate(load_category("multi_turn")[: config.num_chats]):
            order = list(engines) if (number + repeat) % 2 else list(engines)[::-1]
            for turn, row in enumerate(_chat(chat, engines, order, target, params)):
                found[turn].append(row)
    return [
        {
            "turn": turn + 1,
            "num_prompts": len(rows),
            "prompt_tokens": statistics.mean(row[0] for row in rows),
            "cached_tokens": statistics.mean(row[1] for row in rows),
            "ttft_ratio": math.exp(statistics.mean(math.log(row[2]) for row in rows)),
        }
        for turn, rows in sorted(found.items())
    ]


def _chat(
    chat: Conversation, engines: dict[str, Asked], order: list[str], target: Target, params: SamplingParams
) -> list[tuple[int, int, float]]:
    dialogue, rows = Dialogue(replace(chat, system=SYSTEM)), []
    for turn in range(len(chat.turns)):
        prompt = dialogue.ask(turn, target.tokenizer)
        answers = {name: engines[name].ask(prompt, params) for name in order}
        (kept_s, kept), (whole_s, whole) = answers["kept"], answers["whole"]
        assert kept == whole, f"{chat.id}, turn {turn}: the answers differ"
        rows.append((len(prompt), engines["kept"].num_cached, whole_s / kept_s))
        dialogue.answer(kept, target.tokenizer)
    return rows


def pauses(target: Target, proposer: Proposer, config: Config) -> list[dict[str, float]]:
    """Let a long prompt arrive beside a running request, with every size of chunk; return a row for each."""
    chunks = (*config.chunks, WHOLE)
    room = {"max_batch": 2, "max_len": config.long_prompt + 512, "prefix_cache_bytes": 0}
    engines = {size: Engine(target, proposer, prefill_chunk=size, **room) for size in chunks}
    longest: dict[int, list[float]] = defaultdict(list)
    first: dict[int, list[float]] = defaultdict(list)
    for repeat in range(config.repeats + 1):
        for size in chunks if repeat % 2 else chunks[::-1]:
            pause_s, ttft_s = _pause(engines[size], config.long_prompt)
            if repeat:  # the first round warms up
                longest[size].append(pause_s)
                first[size].append(ttft_s)
    whole_pause, whole_first = statistics.median(longest[WHOLE]), statistics.median(first[WHOLE])
    return [
        {
            "chunk": 0 if size == WHOLE else size,
            "pause_ratio": statistics.median(longest[size]) / whole_pause,
            "ttft_ratio": statistics.median(first[size]) / whole_first,
            "pause_ms": 1e3 * statistics.median(longest[size]),
        }
        for size in chunks
    ]


def _pause(engine: Engine, num_tokens: int) -> tuple[float, float]:
    """Return the longest pause of a running request, and the seconds to the first token of the prompt beside it."""
    running = engine.add(list(range(50, 80)), SamplingParams(max_tokens=WHOLE, ignore_eos=True))
    words = [(7919 * place) % 20_000 + 100 for place in range(num_tokens)]
    last, start, arrived, longest, count = perf_counter(), 0.0, None, 0.0, 0
    for event in engine.run():
        now = perf_counter()
        if event.request == running:
            count += 1
            longest = max(longest, now - last) if arrived is not None else 0.0
            last = now
        elif arrived is not None:
            engine.cancel(running)
            engine.cancel(arrived)
            return max(longest, now - last), now - start
        if count == 8 and arrived is None:
            start = now
            arrived = engine.add(words, SamplingParams(max_tokens=4, ignore_eos=True))
    raise AssertionError("the running request ended first")


def main() -> None:
    config = tyro.cli(Config)
    target = load_target(config.target)
    proposer = load_method(method_specs([config.method])[0], target)
    result: dict[str, Any] = {"target": config.target, "method": config.method}
    if config.part != "pauses":
        result["turns"] = turns(target, proposer, config)
        print("turn  prompts  tokens  known  time to first token, whole / kept")
        for row in result["turns"]:
            print(
                f"{row['turn']:>4}  {row['num_prompts']:>7}  {row['prompt_tokens']:>6.0f}  {row['cached_tokens']:>5.0f}"
                f"  {row['ttft_ratio']:.2f}"
            )
    if config.part != "turns":
        result["pauses"] = pauses(target, proposer, config)
        print("chunk  longest pause / whole  first token of the long prompt / whole")
        for row in result["pauses"]:
            print(f"{row['chunk'] or 'whole':>5}  {row['pause_ratio']:>21.2f}  {row['ttft_ratio']:.2f}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
