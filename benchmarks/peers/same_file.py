"""Outrider beside llama.cpp on the same GGUF file, file by file.

    python benchmarks/peers/same_file.py [--files published q8_0 q4_0 q4_k_m bf16]

Each file (`gguf_files.py`) is a run of `outrider bench --preset same-file` in `OUTPUT/FILE/`: Outrider's methods and
llama.cpp's, plain and with its kinds of speculation, the same prompts and limits, prompt by prompt, forwards and
backwards in turn. Both run the file as it is stored. Prompts of 512 tokens are compared with `llama-bench`
(`rates.py`). What is finished is kept; the same command goes on from there. `OUTPUT/page.md` holds every file that was
measured. The last line of stdout is one JSON document.

llama.cpp is the build of `make llama`. Another one, such as that without AMX, is measured with `OUTRIDER_LLAMA` and
another `--output`.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures import rows
from gguf_files import FILES, StoredFile, check_names, stored_files
from measured import ledger_of, report_of
from rates import measure_rates, rates_of
from roster import LLAMA, PLAIN
from run import machine
from same_file_page import Compared, document, same_file_page

from outrider.bench.benchmark import benchmark
from outrider.bench.config import BenchConfig
from outrider.bench.preset import chosen
from outrider.env import num_kernel_threads
from outrider.errors import OutriderError
from outrider.llama_cpp.environment import find_llama
from outrider.records.files import write_text
from outrider.targets.deferred import DeferredTarget

PRESET = "same-file"
RATE_ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line; None and an empty tuple leave the preset's value."""

    output: Path
    target: str
    files: Sequence[str]
    methods: Sequence[str] | None
    categories: Sequence[str] | None
    prompts: int | None
    requests: Sequence[int] | None
    repeats: int | None
    max_new_tokens: int | None


def compare(options: Options) -> list[str]:
    """Run the benchmark of each file, write the page, and return it with its JSON document."""
    check_names(options.files)
    llama = find_llama()
    compared, settings = [], settings_of(chosen(PRESET, {}))
    eos = DeferredTarget(options.target, dtype="bfloat16").spec.eos_ids
    for file in stored_files(llama, options.target, FILES):
        here = options.output / file.name
        if file.name in options.files:
            config = config_of(options, file)
            print(f"{file.name}: {file.path}", file=sys.stderr, flush=True)
            benchmark(config, here, listen=lambda at: print(at.words, file=sys.stderr, flush=True))
            measure_rates(here, {LLAMA: llama.program("llama-bench")}, file.path, num_threads(), RATE_ROUNDS)
            settings = settings_of(config)
        if (here / "report.json").exists():
            ledger, report = ledger_of(here), report_of(here)
            found, rates = rows(ledger, PLAIN, eos), rates_of(here / "rates.json")
            compared.append(Compared(file=file, report=report, ledger=ledger, rows=found, rates=rates))
    text = same_file_page(compared, settings)
    write_text(options.output / "page.md", text + "\n")
    return [text, json.dumps(document(compared, settings))]


def config_of(options: Options, file: StoredFile) -> BenchConfig:
    """Return the settings of a file's run."""
    given = {
        "target": str(file.path),
        "methods": options.methods,
        "categories": options.categories,
        "num_prompts": options.prompts,
        "batches": options.requests,
        "repeats": options.repeats,
        "max_new_tokens": options.max_new_tokens,
    }
    return chosen(PRESET, {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


def settings_of(config: BenchConfig) -> dict[str, Any]:
    """Return what the page says of a run."""
    drafts = [method for method in config.methods if method.startswith("draft_model:")]
    return {
        "max_new_tokens": config.max_new_tokens,
        "threads": num_threads(),
        "draft": drafts[0] if drafts else "none",
        "machine": machine(),
    }


def num_threads() -> int:
    return num_kernel_threads() or len(os.sched_getaffinity(0))


def parse(arguments: Sequence[str] | None = None) -> Options:
    parser = argparse.ArgumentParser(description="Outrider beside llama.cpp on the same GGUF files.")
    parser.add_argument("--output", type=Path, default=Path("runs/same-file"), help="runs and page")
    parser.add_argument("--target", default="smollm2-135m")
    parser.add_argument("--files", nargs="+", default=list(FILES), metavar="FILE", help=f"any of {', '.join(FILES)}")
    parser.add_argument("--methods", nargs="*", help="as for `outrider bench`")
    parser.add_argument("--categories", nargs="+")
    parser.add_argument("--prompts", type=int, help="of each category")
    parser.add_argument("--requests", nargs="+", type=int, help="how many at once")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--max-new-tokens", type=int)
    return Options(**vars(parser.parse_args(arguments)))


def main() -> None:
    try:
        print(*compare(parse()), sep="\n\n")
    except OutriderError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
