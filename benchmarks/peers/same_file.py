"""Outrider beside llama.cpp on the same GGUF file, file by file.

    python benchmarks/peers/same_file.py [--files published q8_0 q4_0 q4_k_m bf16] [--minutes 8]

Each file (`gguf_files.py`) is a race of its own between Outrider's methods and every build of llama.cpp, plain and with
its kinds of speculation: the same prompts and limits, prompt by prompt, forwards and backwards in turn (`race.py`).
Outrider runs the file as it is stored. Prompts of 512 tokens are compared with `llama-bench` (`rates.py`). What is
finished is kept in `OUTPUT/FILE/`; the same command goes on from there. `OUTPUT/page.md` holds every file that was
measured. The last line of stdout is one JSON document.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

from figures import rounds, rows
from gguf_files import FILES, StoredFile, stored_files
from ledger import Key, Ledger
from race import Places
from rates import measure_rates, rates_of
from roster import LLAMA, NO_AMX, PLAIN, READY, Peer, llama, outrider
from run import Options, add_options, checked, machine, shortest_prompts, take_turns
from same_file_page import Compared, document, same_file_page
from talk import PeerError

import outrider as outrider_package
from outrider.data.workloads import workload_hash
from outrider.errors import OutriderError
from outrider.records.files import write_text

METHODS = (
    "ngram",
    "suffix",
    "eagle3:checkpoint=smollm2-135m/eagle3,num_nodes=3",
    "hybrid:drafter=eagle3,checkpoint=smollm2-135m/eagle3,num_nodes=3,lookup_nodes=6",
)
RATE_ROUNDS = 3


def peers_of(options: Options) -> list[Peer]:
    """Return Outrider and the builds of llama.cpp that are there; the native one even where it is not."""
    builds = [LLAMA, *([NO_AMX] if (options.root / NO_AMX / READY).exists() else [])]
    found = [outrider(options.methods), *map(llama, builds)]
    return [peer for peer in found if not options.peers or peer.name in options.peers]


def compare(options: Options, names: list[str]) -> list[str]:
    """Run the race of each file, write the page, and return it with its JSON document."""
    target = outrider_package.load_target(options.target)
    conversations, prompts = shortest_prompts(options, target.tokenizer)
    eos = sorted(target.spec.eos_ids)
    del target
    settings = {
        "target": options.target,
        "draft": options.draft or "the target's first layers",
        "max_new_tokens": options.max_new_tokens,
        "threads": options.threads,
        "workload": workload_hash([one for group in conversations.values() for one in group]),
        "machine": machine(),
    }
    texts = {name: [one.id for one in group] for name, group in conversations.items()}
    cells = [cell for size in options.requests for cell in rounds(texts, size, options.prompts, options.repeats)]
    peers, deadline_s = peers_of(options), monotonic() + 60 * options.minutes
    files = stored_files(options.root, options.target, options.draft, FILES)
    for file in files:
        here = options.output / file.name
        if file.name not in names:
            continue
        ledger = Ledger(here / "measurements.jsonl", {**settings, "file": file.name})
        order = order_of(options, file, eos, prompts)
        minutes = max(0.0, deadline_s - monotonic()) / 60
        print(f"{file.name}: {file.path}", file=sys.stderr, flush=True)
        take_turns(peers, replace(options, output=here, minutes=minutes), ledger, cells, prompts, order)
        if monotonic() < deadline_s:
            _rates(options, file, order)
    compared = [one for file in files if (one := _compared(options, file, settings, eos)) is not None]
    keys = [Key(peer.name, method.name) for peer in peers for method in peer.methods]
    text = same_file_page(compared, settings, keys)
    write_text(options.output / "page.md", text + "\n")
    return [text, json.dumps(document(compared, settings))]


def order_of(options: Options, file: StoredFile, eos: list[int], prompts: dict[str, list[int]]) -> dict[str, Any]:
    """Return what every worker is told to open."""
    return {
        "target": str(file.path),
        "weights": "stored",
        "dtype": file.name,
        "gguf": str(file.path),
        "draft_gguf": str(file.draft),
        "eos": eos,
        "threads": options.threads,
        "max_len": -(-(max(map(len, prompts.values())) + options.max_new_tokens + 64) // 256) * 256,
        "max_requests": max(options.requests),
    }


def _rates(options: Options, file: StoredFile, order: dict[str, Any]) -> None:
    builds = [peer.name for peer in peers_of(options) if peer.name in (LLAMA, NO_AMX)]
    places = Places(root=options.root, output=options.output / file.name, threads=options.threads)
    try:
        measure_rates(places, builds, file.path, order, RATE_ROUNDS)
    except PeerError as error:
        print(f"{file.name}: no prompts of 512 tokens: {error}", file=sys.stderr, flush=True)


def _compared(options: Options, file: StoredFile, settings: dict[str, Any], eos: list[int]) -> Compared | None:
    """Return what was measured on a file; None for nothing."""
    here = options.output / file.name
    if not (here / "measurements.jsonl").exists():
        return None
    ledger = Ledger(here / "measurements.jsonl", {**settings, "file": file.name})
    found = rows(ledger, PLAIN, eos)
    return Compared(file=file, ledger=ledger, rows=found, rates=rates_of(here / "rates.json")) if found else None


def parse(arguments: Sequence[str] | None = None) -> tuple[Options, list[str]]:
    """Return the options of a race, and the names of the files."""
    parser = argparse.ArgumentParser(description="Outrider beside llama.cpp on the same GGUF files.")
    add_options(parser)
    parser.add_argument("--files", nargs="+", default=list(FILES), metavar="FILE", help=f"any of {', '.join(FILES)}")
    parser.set_defaults(
        output=Path("runs/same-file"), methods=list(METHODS), draft="smollm2-135m/draft", categories=["chat"],
        prompts=4, max_new_tokens=96,
    )  # fmt: skip
    given = vars(parser.parse_args(arguments))
    names = given.pop("files")
    return checked(Options(**given)), names


def main() -> None:
    try:
        print(*compare(*parse()), sep="\n\n")
    except OutriderError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
