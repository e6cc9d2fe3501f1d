"""Reads the lines of a run that are on disk, and trusts none of them: they may be cut off, edited or mixed up.

A line that cannot be used is a `RunError` with file, line and a remedy that works: without its line, a unit counts as
not measured yet. A unit must have the name that its fields give, answers to its own conversations, and counts and times
that can be; a verdict must fit a unit. Verdicts on units that are gone are left out.

Example: `read_units(Path("runs/x/units.jsonl"))["none/chat/b1/t0/r0/chat-01"].unit.wall_s`.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from outrider.errors import RunError, on_one_line
from outrider.records.codec import from_plain, parsed
from outrider.results.counters import Counters
from outrider.results.equality.verdict import Verdict
from outrider.results.unit import Answer, UnitResult, unit_id
from outrider.traces.trace import Trace, TraceKey

__all__ = ["REMEDY", "Kept", "Verdicts", "flaw_of", "judged", "read_traces", "read_units", "read_verdicts"]

REMEDY = "delete the line and run the same command again"
LONGEST_S = 1e9


class Kept(NamedTuple):
    """A unit, and where it stands: "units.jsonl, line 3"."""

    unit: UnitResult
    place: str


class _Line(NamedTuple):
    place: str
    text: str


class Verdicts(NamedTuple):
    """The verdicts on units by name, and whether there are others on units that are gone."""

    found: dict[str, tuple[Verdict, ...]]
    has_strays: bool


def read_units(path: Path) -> dict[str, Kept]:
    """Return the units of a file by name, in order; none if there is no file.

    Raises:
        RunError: if the file cannot be read, or lines are damaged; names the first.
    """
    units: dict[str, Kept] = {}

    def take(line: _Line) -> None:
        unit = UnitResult.from_json(line.text)
        first = units.get(unit.unit)
        if flaw := flaw_of(unit):
            raise RunError(f"the unit '{on_one_line(unit.unit, 120)}' {flaw}")
        if first is not None and first.unit != unit:
            raise RunError(f"the unit '{on_one_line(unit.unit, 120)}' stands in {first.place} too, with other values")
        units.setdefault(unit.unit, Kept(unit, line.place))

    _take_all(path, take)
    return units


def read_verdicts(path: Path, units: Mapping[str, Kept]) -> Verdicts:
    """Return the last verdicts on each of the units.

    Raises:
        RunError: if the file cannot be read, or lines are damaged; names the first.
    """
    found: dict[str, tuple[Verdict, ...]] = {}
    strays: list[str] = []

    def take(line: _Line) -> None:
        name, verdicts = _verdicts_of(parsed(line.text, "a line of verdicts"))
        if name in units:
            _check_verdicts(verdicts, units[name].unit)
            found[name] = verdicts
        else:
            strays.append(name)

    _take_all(path, take)
    return Verdicts(found, bool(strays))


def read_traces(path: Path) -> dict[TraceKey, Trace]:
    """Return the traces of a file by their keys, in order; none if there is no file.

    Raises:
        RunError: if the file cannot be read, or lines are damaged; names the first.
    """
    traces: dict[TraceKey, Trace] = {}

    def take(line: _Line) -> None:
        trace = Trace.from_json(line.text)
        traces[trace.key] = trace

    _take_all(path, take)
    return traces


def _take_all(path: Path, take: Callable[[_Line], None]) -> None:
    """Give every line to `take`, and raise one error that names the first that it refuses."""
    refused: list[str] = []
    for line in _lines(path):
        try:
            take(line)
        except RunError as error:
            refused.append(f"{line.place}: {error}")
    if refused:
        more = f" ({len(refused) - 1} more lines are damaged)" if len(refused) > 1 else ""
        raise RunError(f"{refused[0]}{more}; {REMEDY}")


def judged(unit: UnitResult, verdicts: Sequence[Verdict]) -> UnitResult:
    """Return the unit with its answers' verdicts."""
    pairs = zip(unit.answers, verdicts, strict=True)
    return replace(unit, answers=tuple(replace(answer, verdict=verdict) for answer, verdict in pairs))


def flaw_of(unit: UnitResult) -> str | None:
    """Return what cannot be true of a unit; None if nothing."""
    if not unit.conversations or unit.unit != _name_of(unit):
        return "has another name than its fields give"
    numbers = (unit.repeat, unit.temperature, *unit.memory_bytes.values(), *_counts(unit.counters))
    if unit.batch < 1 or not _are_counts(numbers) or not 0 < unit.wall_s <= LONGEST_S:
        return "has a size or a time that cannot be"
    if len({(one.conversation, one.turn) for one in unit.answers}) < len(unit.answers):
        return "answers the same turn twice"
    flaws = (_flaw_of_answer(answer, unit) for answer in unit.answers)
    return next(filter(None, flaws), None) or _flaw_of_steps(unit)


def _flaw_of_answer(answer: Answer, unit: UnitResult) -> str | None:
    if answer.conversation not in unit.conversations:
        return "answers a conversation that it does not have"
    counts = (answer.turn, answer.request, answer.num_prompt_tokens, answer.first_burst, *answer.bursts)
    times = [0.0 if time is None else time for time in (answer.start_s, answer.ttft_s, answer.latency_s)]
    if not _are_counts((*counts, *answer.tokens, *times)) or max(times) > LONGEST_S:
        return "has an answer with a count or a time that cannot be"
    if answer.bursts and sum(answer.bursts) != len(answer.tokens):
        return "has an answer whose bursts are not its tokens"
    if answer.latency_s is not None and answer.ttft_s is not None and answer.latency_s < answer.ttft_s:
        return "has an answer that ends before it begins"
    return None


def _flaw_of_steps(unit: UnitResult) -> str | None:
    requests = {answer.request for answer in unit.answers}
    if unit.steps and len(requests) < len(unit.answers):
        return "has two answers of one request"
    emitted = dict.fromkeys(requests, 0)
    for step in unit.steps:
        if not step.slots or step.num_rows < 1:
            return "has a step without a slot"
        for slot in step.slots:
            if slot.request not in requests:
                return "has a step of a request that it does not answer"
            if not slot.num_accepted <= slot.draft_depth <= slot.num_nodes:
                return "has a step that accepts more than it drafted"
            emitted[slot.request] += slot.num_emitted
    tokens = {answer.request: len(answer.tokens) for answer in unit.answers}
    if unit.steps and emitted != tokens:
        return "has answers whose tokens are not those of its steps"
    return None


def _name_of(unit: UnitResult) -> str:
    return unit_id(
        unit.method,
        unit.category,
        unit.batch,
        unit.temperature,
        unit.repeat,
        unit.conversations,
        engine=unit.engine,
        state=unit.state,
    )


def _counts(counters: Counters | None) -> tuple[int, ...]:
    if counters is None:
        return ()
    totals = (counters.num_generation_tokens, counters.num_drafts, counters.num_draft_tokens)
    return (*totals, counters.num_accepted_tokens, *counters.num_accepted_tokens_per_pos)


def _are_counts(numbers: Sequence[float]) -> bool:
    return all(number >= 0 for number in numbers)


def _verdicts_of(entry: Any) -> tuple[str, tuple[Verdict, ...]]:
    if not isinstance(entry, dict) or not isinstance(entry.get("unit"), str):
        raise RunError("a line of verdicts names no unit")
    if not isinstance(entry.get("verdicts"), list):
        raise RunError("a line of verdicts has no list of them")
    return entry["unit"], tuple(from_plain(Verdict, verdict) for verdict in entry["verdicts"])


def _check_verdicts(verdicts: Sequence[Verdict], unit: UnitResult) -> None:
    if len(verdicts) != len(unit.answers):
        raise RunError(f"there are {len(verdicts)} verdicts on {len(unit.answers)} answers")
    for one in verdicts:
        numbers = (one.position or 0, one.margin or 0.0, one.noise or 0.0, one.num_compared, one.num_skipped)
        if not _are_counts(numbers) or not all(map(math.isfinite, numbers)):
            raise RunError("a verdict has a number below 0")


def _lines(path: Path) -> Iterator[_Line]:
    """Yield the lines that are not empty."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path} cannot be read ({on_one_line(str(error))}); mend that or give a new --run-dir"
        ) from error
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            yield _Line(f"{path}, line {number}", line.decode(errors="surrogateescape"))
