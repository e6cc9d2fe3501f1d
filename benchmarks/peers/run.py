"""Outrider beside libraries that are no servers: the same prompts, weights and limits, one at a time, in turns.

    python benchmarks/peers/run.py [--methods ngram suffix eagle3:checkpoint=DIR] [--minutes 8] [--peers NAME ...]

Every peer is a process of its own that lives as long as the run (`roster.py`, `race.py`). A round gives one group of
prompts to every method of every peer, one after the other, forwards and backwards in turn, so that a drift of the
machine meets all alike; then comes the next group, and the whole again for each repeat. What is finished is kept in
`OUTPUT/measurements.jsonl`; the same command goes on from there. The page is written to `OUTPUT/page.md` and printed;
the last line of stdout is one JSON document.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

from figures import Row, losses, rounds, rows
from ledger import Cell, Key, Ledger
from page import page
from race import Places, Race, Running, close_peer, left, open_peer, start_peer
from roster import PLAIN, Peer, others, outrider
from weights import prepare

import outrider as outrider_package
from outrider.data.dialogue import Dialogue
from outrider.data.workloads import Conversation, load_category, workload_hash
from outrider.errors import ConfigError, OutriderError, nearest
from outrider.records.files import write_text
from outrider.records.provenance import hardware


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line."""

    root: Path
    output: Path
    target: str
    methods: list[str]
    peers: list[str]
    draft: str | None
    categories: list[str]
    prompts: int
    requests: list[int]
    repeats: int
    max_new_tokens: int
    threads: int
    minutes: float


def chosen(options: Options) -> list[Peer]:
    peers = [outrider(options.methods), *others()]
    names = [peer.name for peer in peers]
    for name in options.peers:
        if name not in names:
            raise ConfigError(f"unknown peer '{name}'{nearest(name, names)}")
    return [peer for peer in peers if peer.name in (options.peers or names)]


def compare(options: Options) -> list[str]:
    """Run the whole race, write its page, and print its last line."""
    target = outrider_package.load_target(options.target)
    conversations, prompts = shortest_prompts(options, target.tokenizer)
    max_len = -(-(max(map(len, prompts.values())) + options.max_new_tokens + 64) // 256) * 256
    eos = sorted(target.spec.eos_ids)
    del target
    weights = prepare(options.root, options.target, options.draft)
    settings = {
        "target": options.target,
        "draft": weights.draft_source,
        "max_new_tokens": options.max_new_tokens,
        "threads": options.threads,
        "workload": workload_hash([one for group in conversations.values() for one in group]),
        "machine": machine(),
    }
    ledger = Ledger(options.output / "measurements.jsonl", settings)
    texts = {name: [one.id for one in group] for name, group in conversations.items()}
    cells = [cell for size in options.requests for cell in rounds(texts, size, options.prompts, options.repeats)]
    order = {
        "target": options.target,
        "weights": "bf16",
        "dtype": "bfloat16",
        "model": str(weights.model),
        "draft": str(weights.draft),
        "eos": eos,
        "threads": options.threads,
        "max_len": max_len,
        "max_requests": max(options.requests),
    }
    take_turns(chosen(options), options, ledger, cells, prompts, order)
    found = rows(ledger, PLAIN, eos)
    keys = [Key(peer.name, method.name) for peer in chosen(options) for method in peer.methods]
    keys += [row.key for row in found if row.key not in keys]
    text = page(found, ledger.identities, ledger.failures, settings, list(dict.fromkeys(keys)))
    write_text(options.output / "page.md", text + "\n")
    return [text, json.dumps(document(found, ledger, settings))]


def take_turns(
    peers: list[Peer],
    options: Options,
    ledger: Ledger,
    cells: list[Cell],
    prompts: dict[str, list[int]],
    order: dict[str, Any],
) -> None:
    """Open the peers that have something left to measure, let them take turns, and close them."""
    running = [Running(peer, group) for peer in peers for group in peer.groups()]
    running = [one for one in running if left(one, cells, ledger)]
    shortest = sorted(prompts.values(), key=len)
    warm_up = (shortest * max(options.requests))[: max(options.requests)]
    places = Places(root=options.root, output=options.output, threads=options.threads)
    with ExitStack() as stack:
        for one in running:
            stack.callback(close_peer, one)
            start_peer(one, places, ledger)
        print(f"opening {len(running)} processes", file=sys.stderr, flush=True)
        with ThreadPoolExecutor(options.threads) as pool:
            list(pool.map(lambda one: open_peer(one, order, places, ledger, warm_up), running))
        deadline_s = monotonic() + 60 * options.minutes
        rounds_left = Race(ledger, running, prompts, options.max_new_tokens, deadline_s=deadline_s)
        if not rounds_left.run(cells):
            print("the time is up; the same command goes on from here", file=sys.stderr, flush=True)


def shortest_prompts(options: Options, tokenizer: Any) -> tuple[dict[str, list[Conversation]], dict[str, list[int]]]:
    """Return the shortest prompts of each category, as many as any round takes, and their token ids."""
    share = -(-max(options.requests) // len(options.categories))
    needed = max(options.prompts, share if max(options.requests) > 1 else 1)
    chosen, prompts = {}, {}
    for name in options.categories:
        group = load_category(name)
        ids = {one.id: Dialogue(one).ask(0, tokenizer) for one in group}
        chosen[name] = sorted(group, key=lambda one: (len(ids[one.id]), one.id))[:needed]
        prompts |= {one.id: ids[one.id] for one in chosen[name]}
    return chosen, prompts


def machine() -> str:
    found = hardware()
    return f"{found.cpu}, {found.num_usable_cores} usable cores, {', '.join(found.flags)}"


def document(found: list[Row], ledger: Ledger, settings: dict[str, Any]) -> dict[str, Any]:
    """Return all figures, for a program."""
    return {
        "schema": "outrider.peers/1",
        **settings,
        "rows": [{**asdict(row), "key": row.key._asdict()} for row in found],
        "lost": [
            {**asdict(loss), "winner": loss.winner._asdict(), "ours": loss.ours._asdict()} for loss in losses(found)
        ],
        "peers": [{**key._asdict(), **asdict(identity)} for key, identity in ledger.identities.items()],
        "failures": [{**key._asdict(), "reason": reason} for key, reason in ledger.failures.items()],
    }


def parse(arguments: Sequence[str] | None = None) -> Options:
    parser = argparse.ArgumentParser(description="Outrider beside other engines, prompt by prompt.")
    add_options(parser)
    return checked(Options(**vars(parser.parse_args(arguments))))


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, default=Path(".peers"), help="where the environments are")
    parser.add_argument("--output", type=Path, default=Path("runs/peers"), help="measurements, logs and page")
    parser.add_argument("--target", default="smollm2-135m")
    parser.add_argument("--methods", nargs="*", default=["ngram", "suffix"], help="ours, as for `outrider bench`")
    parser.add_argument("--peers", nargs="*", default=[], help="who takes part; everybody by default")
    parser.add_argument("--draft", help="a trained draft model for all; by default the target's first layers")
    parser.add_argument("--categories", nargs="+", default=["chat", "editing", "reasoning"])
    parser.add_argument("--prompts", type=int, default=2, help="of each category, the shortest ones")
    parser.add_argument("--requests", nargs="+", type=int, default=[1, 4], help="how many at once")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=60.0, help="of measuring; no round begins after them")


def checked(options: Options) -> Options:
    """Return the options with absolute paths.

    Raises:
        ConfigError: for a number that is too small.
    """
    for name in ("prompts", "repeats", "max_new_tokens", "threads"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(options, name)} must be at least 1")
    if min(options.requests) < 1:
        raise ConfigError(f"--requests {min(options.requests)} must be at least 1")
    return replace(options, root=options.root.resolve(), output=options.output.resolve())


def main() -> None:
    try:
        print(*compare(parse()), sep="\n\n")
    except OutriderError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
