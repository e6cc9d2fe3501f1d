"""A run of the benchmark as the page reads it: the same units, under the page's names.

    unit of "llama.cpp", method "none"    the row llama.cpp plain
    an answer's times                     when its first token came, and when it ended
    "left out: llama.cpp ngram, for ..."  why a row is missing

Example: `ledger_of(Path("runs/same-file/q8_0")).measurements` has one entry for each line of `units.jsonl`.
"""

from pathlib import Path

from ledger import Answer, Cell, Key, Ledger, Measurement
from roster import LLAMA, PLAIN

from outrider.results.rows import PLAIN as NO_SPECULATION
from outrider.results.rows import Report, from_json
from outrider.results.unit import UnitResult

LEFT_OUT = f"left out: {LLAMA} "


def ledger_of(run: Path) -> Ledger:
    """Return the measurements of a finished run, and why rows are missing."""
    ledger = Ledger(None, {})
    for line in (run / "units.jsonl").read_text(encoding="utf-8").splitlines():
        measurement = measurement_of(UnitResult.from_json(line))
        ledger.measurements[measurement.key, measurement.cell] = measurement
    for note in report_of(run).notes:
        if note.startswith(LEFT_OUT):
            method, _, reason = note.removeprefix(LEFT_OUT).partition(", for ")
            ledger.failures[Key(LLAMA, named(method))] = f"crashed: {reason}" if "ended" in reason else reason
    return ledger


def measurement_of(unit: UnitResult) -> Measurement:
    answers = tuple(
        Answer(
            tokens=answer.tokens,
            arrivals=None
            if answer.ttft_s is None or answer.latency_s is None or len(answer.tokens) <= answer.first_burst
            else (
                ((answer.start_s or 0.0) + answer.ttft_s, answer.first_burst),
                ((answer.start_s or 0.0) + answer.latency_s, len(answer.tokens)),
            ),
        )
        for answer in unit.answers
    )
    cell = Cell(num_requests=unit.batch, category=unit.category, prompts=unit.conversations, repeat=unit.repeat)
    return Measurement(key=Key(unit.engine, named(unit.method)), cell=cell, answers=answers, wall_s=unit.wall_s)


def named(method: str) -> str:
    return PLAIN if method == NO_SPECULATION else method


def report_of(run: Path) -> Report:
    """Return the report of a finished run."""
    return from_json((run / "report.json").read_text(encoding="utf-8"))
