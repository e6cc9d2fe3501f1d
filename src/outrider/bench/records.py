"""Step and prefill records as JSON events, one per target forward, compact enough to keep them all.

    {"step": 7, "rows": 4, "chain": true, "s": [propose, verify, accept, commit, host],
     "slots": [[request, context_length, num_nodes, draft_depth, num_accepted, num_emitted, finished], ...]}
    {"prefill": [request, ...], "tokens": 93, "s": [target, proposer]}

Seconds are kept to the nanosecond. A step of one slot takes about 120 bytes.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from outrider.errors import RunError
from outrider.metrics import PrefillRecord, SlotStep, StepRecord

__all__ = ["Record", "event_of", "prefill_of", "record_from_json", "record_of", "record_to_json", "step_of"]

Record = StepRecord | PrefillRecord


def record_to_json(record: Record) -> str:
    """One line, without the newline."""
    return json.dumps(event_of(record), separators=(",", ":"))


def record_from_json(line: str) -> Record:
    """The record of a line.

    Raises:
        RunError: if the line is damaged.
    """
    try:
        event = json.loads(line)
    except json.JSONDecodeError as error:
        raise RunError(f"a record cannot be read: not JSON at character {error.pos} ({error.msg})") from error
    return record_of(event)


def event_of(record: Record) -> dict[str, Any]:
    """The record as a plain JSON object."""
    if isinstance(record, PrefillRecord):
        seconds = _rounded(record.target_s, record.proposer_s)
        return {"prefill": list(record.requests), "tokens": record.num_tokens, "s": seconds}
    return {
        "step": record.step,
        "rows": record.num_rows,
        "chain": record.is_chain,
        "s": _rounded(record.propose_s, record.verify_s, record.accept_s, record.commit_s, record.host_s),
        "slots": [_slot_of(slot) for slot in record.slots],
    }


def record_of(event: Any) -> Record:
    """The record of a JSON object.

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
        seconds = [float(value) for value in event["s"]]
        return StepRecord(int(event["step"]), int(event["rows"]), bool(event["chain"]), slots, *seconds)


def prefill_of(event: Any) -> PrefillRecord:
    """
    Raises:
        RunError: if it is not a prefill.
    """
    with _damage(event):
        seconds = [float(value) for value in event["s"]]
        return PrefillRecord(tuple(map(int, event["prefill"])), int(event["tokens"]), *seconds)


@contextmanager
def _damage(event: Any) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"a record is damaged ({error}): {event!r:.80}; delete its unit and resume the run") from error


def _slot_of(slot: SlotStep) -> list[int | bool]:
    return [
        slot.request,
        slot.context_length,
        slot.num_nodes,
        slot.draft_depth,
        slot.num_accepted,
        slot.num_emitted,
        slot.finished,
    ]


def _checked_slot(slot: Any) -> Any:
    if [type(value) for value in slot] != [int] * 6 + [bool]:
        raise ValueError("a slot is six whole numbers and true or false")
    return slot


def _rounded(*seconds: float) -> list[float]:
    return [round(value, 9) for value in seconds]
