"""Step and prefill records as JSON events, one per target forward, compact enough to keep them all.

    {"step": 7, "rows": 4, "chain": true, "s": [propose, verify, accept, commit, host],
     "slots": [[request, context_length, num_nodes, draft_depth, num_accepted, num_emitted, finished], ...]}
     (and `num_forced` behind `finished` where it is not 0)
    {"prefill": [request, ...], "tokens": 93, "s": [target, proposer], "cached": [tokens, ...], "waited": [s, ...],
     "started": [request, ...]}

Seconds are kept to the nanosecond. A step of one slot takes about 120 bytes.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from outrider.errors import RunError, on_one_line
from outrider.metrics import PrefillRecord, SlotStep, StepRecord
from outrider.records.codec import parsed

__all__ = ["Record", "event_of", "prefill_of", "record_from_json", "record_of", "record_to_json", "step_of"]

Record = StepRecord | PrefillRecord
LARGEST_COUNT, LONGEST_S = 2**53, 1e9


def record_to_json(record: Record) -> str:
    """Return one line, without the newline."""
    return json.dumps(event_of(record), separators=(",", ":"))


def record_from_json(line: str) -> Record:
    """Return the record of a line.

    Raises:
        RunError: if the line is damaged.
    """
    return record_of(parsed(line, "a record"))


def event_of(record: Record) -> dict[str, Any]:
    """Return the record as a plain JSON object."""
    if isinstance(record, PrefillRecord):
        seconds = _rounded(record.target_s, record.proposer_s)
        known: dict[str, list[Any]] = {
            "cached": list(record.cached_tokens),
            "waited": _rounded(*record.waited_s),
            "started": list(record.started),
        }
        return {
            "prefill": list(record.requests),
            "tokens": record.num_tokens,
            "s": seconds,
            **{name: values for name, values in known.items() if values},
        }
    return {
        "step": record.step,
        "rows": record.num_rows,
        "chain": record.is_chain,
        "s": _rounded(record.propose_s, record.verify_s, record.accept_s, record.commit_s, record.host_s),
        "slots": [_slot_of(slot) for slot in record.slots],
    }


def record_of(event: Any) -> Record:
    """Return the record of a JSON object.

    Raises:
        RunError: if it is not one that `event_of` makes.
    """
    return prefill_of(event) if isinstance(event, dict) and "prefill" in event else step_of(event)


def step_of(event: Any) -> StepRecord:
    """
    Raises:
        RunError: if it is not a step.
    """
    with _damage(event):
        slots = tuple(SlotStep(*_checked_slot(slot)) for slot in event["slots"])
        if type(event["chain"]) is not bool:
            raise ValueError("'chain' is true or false")
        return StepRecord(_count(event["step"]), _count(event["rows"]), event["chain"], slots, *_seconds(event, 5))


def prefill_of(event: Any) -> PrefillRecord:
    """
    Raises:
        RunError: if it is not a prefill.
    """
    with _damage(event):
        target_s, proposer_s = _seconds(event, 2)
        return PrefillRecord(
            tuple(map(_count, event["prefill"])),
            _count(event["tokens"]),
            target_s,
            proposer_s,
            cached_tokens=tuple(map(_count, event.get("cached", []))),
            waited_s=tuple(_seconds(event, len(event["prefill"]), "waited")) if "waited" in event else (),
            started=tuple(map(_count, event.get("started", []))),
        )


@contextmanager
def _damage(event: Any) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"a record is damaged ({error}): {on_one_line(repr(event), 80)}") from error


def _slot_of(slot: SlotStep) -> list[int | bool]:
    return [
        slot.request,
        slot.context_length,
        slot.num_nodes,
        slot.draft_depth,
        slot.num_accepted,
        slot.num_emitted,
        slot.finished,
        *([slot.num_forced] if slot.num_forced else []),
    ]


def _checked_slot(slot: Any) -> Any:
    if [type(value) for value in slot] not in ([int] * 6 + [bool], [int] * 6 + [bool, int]):
        raise ValueError("a slot is six whole numbers and true or false, and perhaps a number of forced tokens")
    return [*map(_count, slot[:6]), slot[6], *map(_count, slot[7:])]


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= LARGEST_COUNT:
        raise ValueError("a count is a whole number of at least 0")
    return value


def _seconds(event: Any, num: int, name: str = "s") -> list[float]:
    """Return the `num` times of an event."""
    times = event[name]
    if not isinstance(times, list) or len(times) != num:
        raise ValueError(f"there are {num} times")
    if not all(type(value) in (int, float) and 0 <= value <= LONGEST_S for value in times):
        raise ValueError("a time is a number of at least 0")
    return [float(value) for value in times]


def _rounded(*seconds: float) -> list[float]:
    return [round(value, 9) for value in seconds]
