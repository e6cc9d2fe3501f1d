"""Long contexts: what a step costs and which method wins, from 1,000 tokens to the target's limit.

    python benchmarks/long_contexts.py --records long.jsonl                     measure; the same command resumes
    python benchmarks/long_contexts.py --records long.jsonl --figures NAME      draw it too

Three kinds of work, behind text that comes with Python and is cut to the wanted length: "answer" asks a question about
pages of its language reference, "write" asks for a story that has nothing to do with them, "copy" for a function of
`argparse` once more, with type hints.

A unit is one prompt. Every cell answers it in turn, several times; the first time reads the prompt and warms up, the
others begin from the kept prompt. All texts of a unit must be equal. The end of text is ignored. Lookups see no answer
of an earlier round. Times are medians over the rounds, speedups the geometric mean over the prompts of (seconds of all
steps of plain decoding / of the cell); the last column counts the prompt's reading too.

Example: a cell `eagle3:window=512+auto` drafts with the head's last 512 positions, under the adaptive budget.
"""

import argparse
import json
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from inspect import getsource
from pathlib import Path
from pydoc_data import topics
from typing import Any

import outrider
from outrider.metrics import PrefillRecord, StepRecord, summarize
from outrider.proposers.method_spec import load_method, method_specs
from outrider.records.files import write_text
from outrider.results.figures.lines import Curve, LineFigure

LENGTHS = (1024, 2048, 4096, 7936)
CELLS = (
    "none",
    "ngram",
    "suffix",
    "eagle3",
    "eagle3:window=512",
    "eagle3:window=512+auto",
    "hybrid",
    "hybrid:window=512+auto",
)
PLAIN, AUTO = CELLS[0], "+auto"
LEARN = ("suffix", "hybrid")
QUESTIONS = {
    "answer": "What do the pages above say? Explain the most important rules in your own words.",
    "write": "Leave the pages above aside. Write a story about a lighthouse keeper who finds a letter on the beach.",
    "copy": "Write the last function of the module above once more, with type hints.",
}
LABELS = {
    "answer": "answers about a long text",
    "write": "a story behind a long text",
    "copy": "copies from a long text",
}


@dataclass(frozen=True)
class Unit:
    """One prompt: its kind, its length in tokens, and its place among those of its kind."""

    kind: str
    length: int
    place: int

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.length}/{self.place}"


def source_of(kind: str) -> str:
    if kind == "copy":
        return getsource(argparse)
    return "\n\n".join(text for _, text in sorted(topics.topics.items()) if len(text) > 3000)


def prompt_of(target: outrider.Target, unit: Unit) -> str:
    """Return a prompt of `unit.length` tokens, a few more or less, its chat template included."""
    tokenizer = target.tokenizer
    question = "\n\n" + QUESTIONS[unit.kind]
    around = len(tokenizer.apply_chat_template([{"role": "user", "content": question}], tokenize=True))
    ids = tokenizer.encode(source_of(unit.kind), verbose=False)
    start = unit.place * len(ids) // 7
    text = tokenizer.decode(ids[start : start + unit.length - around])
    return text + question


def engines_of(target: outrider.Target, cells: Sequence[str], records: list[Any]) -> dict[str, outrider.Engine]:
    specs = method_specs([cell.removesuffix(AUTO) for cell in cells])
    for spec in specs:
        if spec.name in LEARN:
            spec.settings["max_cached_requests"] = 0
    return {
        cell: outrider.Engine(
            target,
            load_method(spec, target),
            prefix_cache_bytes=1 << 29,
            budget="auto" if cell.endswith(AUTO) else "fixed",
            record=records.append,
        )
        for cell, spec in zip(cells, specs, strict=True)
    }


def measure(
    engines: dict[str, outrider.Engine], records: list[Any], prompt: str, rounds: int, length: int
) -> dict[str, Any]:
    """Return the figures of each cell for one prompt."""
    params = outrider.SamplingParams(max_tokens=length, ignore_eos=True)
    seconds: dict[str, list[float]] = defaultdict(list)
    steps: dict[str, list[StepRecord]] = defaultdict(list)
    read_s: dict[str, float] = {}
    texts = set()
    for engine in engines.values():
        engine.reset()  # a prompt that begins alike must not save the reading of this one
    for turn in range(rounds + 1):
        for cell in list(engines)[:: -1 if turn % 2 else 1]:
            records.clear()
            [answer] = engines[cell].generate([prompt], params)
            texts.add(tuple(answer.tokens))
            taken = [record for record in records if isinstance(record, StepRecord)]
            if turn == 0:
                read_s[cell] = sum(
                    record.target_s + record.proposer_s for record in records if isinstance(record, PrefillRecord)
                )
                continue
            seconds[cell].append(sum(map(step_s, taken)))
            steps[cell] += taken
    if len(texts) != 1:
        sys.exit(f"{len(texts)} texts differ among {', '.join(engines)}: {sorted(texts)}")
    return {
        cell: {
            "decode_s": statistics.median(seconds[cell]),
            "read_s": read_s[cell],
            "tau": summarize(steps[cell]).tokens_per_target_forward,
            "rows": statistics.fmean(step.num_rows for step in steps[cell]),
            "verify_ms": 1e3 * statistics.median(step.verify_s for step in steps[cell]),
            "propose_ms": 1e3 * statistics.median(step.propose_s for step in steps[cell]),
        }
        for cell in engines
    }


def step_s(step: StepRecord) -> float:
    return step.propose_s + step.verify_s + step.accept_s + step.commit_s + step.host_s


def total_s(figures: dict[str, float]) -> float:
    return figures["read_s"] + figures["decode_s"]


def rows_of(kept: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the figures of every kind, length and cell over its prompts."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for unit in kept:
        groups[unit["kind"], unit["length"]].append(unit["cells"])
    for (kind, length), units in sorted(groups.items()):
        for cell in units[0]:
            logs = [math.log(cells[PLAIN]["decode_s"] / cells[cell]["decode_s"]) for cells in units]
            whole = [math.log(total_s(cells[PLAIN]) / total_s(cells[cell])) for cells in units]
            mean = {name: statistics.fmean(cells[cell][name] for cells in units) for name in units[0][cell]}
            yield {
                "kind": kind,
                "context": length,
                "cell": cell,
                "prompts": len(units),
                "speedup": math.exp(statistics.fmean(logs)),
                "lowest": math.exp(min(logs)),
                "highest": math.exp(max(logs)),
                "end_to_end": math.exp(statistics.fmean(whole)),
                **mean,
            }


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    names = "Work|Context|Prompts|Cell|tau|Rows|Verify, ms|Draft, ms|Prompt, s|Times plain (each prompt)|With prompt"
    print(f"| {' | '.join(names.split('|'))} |")
    print("|---" * len(names.split("|")) + "|")
    for row in rows:
        values = (
            row["kind"],
            row["context"],
            row["prompts"],
            f"`{row['cell']}`",
            f"{row['tau']:.2f}",
            f"{row['rows']:.1f}",
            f"{row['verify_ms']:.1f}",
            f"{row['propose_ms']:.1f}",
            f"{row['read_s']:.1f}",
            f"{row['speedup']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f})",
            f"{row['end_to_end']:.2f}",
        )
        print(f"| {' | '.join(map(str, values))} |")


def draw(rows: Sequence[dict[str, Any]], stem: str, footnote: str) -> None:
    """Write a picture of each kind of work: speedup over the context, a line for each cell."""
    for kind in sorted({row["kind"] for row in rows}):
        some = [row for row in rows if row["kind"] == kind and row["cell"] != PLAIN]
        curves = []
        for cell in dict.fromkeys(row["cell"] for row in some):
            points = [row for row in some if row["cell"] == cell]
            xs = tuple(float(row["context"]) for row in points)
            curves.append(Curve(cell, xs, tuple(row["speedup"] for row in points)))
        figure = LineFigure(
            f"Speedup over plain decoding by context: {LABELS[kind]}",
            curves=tuple(curves),
            x_name="tokens of the prompt",
            is_log=True,
            most=1.1,
            line=1,
            subtitle="The line at 1 is plain decoding. The prompt's reading is not counted.",
            footnote=footnote,
        )
        write_text(Path(f"{stem}.{kind}.svg"), figure.svg())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="smollm2-135m")
    parser.add_argument("--records", type=Path, required=True, help="JSON lines: a unit is kept here when it is done")
    parser.add_argument("--cells", nargs="+", default=list(CELLS), help="methods with settings; +auto: adaptive budget")
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS))
    parser.add_argument("--kinds", nargs="+", default=list(QUESTIONS), choices=list(QUESTIONS))
    parser.add_argument("--prompts", type=int, default=2, help="of each kind and length, at most 6")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--draw-only", action="store_true", help="measure nothing; show what is on record")
    parser.add_argument("--figures", help="also draw NAME.KIND.svg for every kind")
    parser.add_argument("--footnote", default="", help="a line below the pictures: the machine, the commit")
    given = parser.parse_args()
    cells = list(dict.fromkeys([PLAIN, *given.cells]))
    kept = [json.loads(line) for line in given.records.read_text().splitlines()] if given.records.exists() else []
    known = {unit["key"] for unit in kept}
    units = [
        Unit(kind, length, place) for length in given.lengths for place in range(given.prompts) for kind in given.kinds
    ]
    missing = [] if given.draw_only else [unit for unit in units if unit.key not in known]
    if missing:
        target, records = outrider.load_target(given.target), []
        engines = engines_of(target, cells, records)
        for engine in engines.values():
            engine.generate(["Hello"], outrider.SamplingParams(max_tokens=8))  # compiles, and loads what is compiled
        for done, unit in enumerate(missing, len(units) - len(missing) + 1):
            figures = measure(engines, records, prompt_of(target, unit), given.rounds, given.tokens)
            kept.append({"key": unit.key, "kind": unit.kind, "length": unit.length, "cells": figures})
            write_text(given.records, "".join(json.dumps(one) + "\n" for one in kept))
            print(f"{done}/{len(units)} {unit.key}", file=sys.stderr)
    rows = list(rows_of(kept))
    print_table(rows)
    if given.figures:
        draw(rows, given.figures, given.footnote)
    print(json.dumps({"schema": "outrider.long_contexts/1", "target": given.target, "rows": rows}))


if __name__ == "__main__":
    main()
