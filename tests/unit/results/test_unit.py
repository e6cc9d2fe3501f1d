"""A unit survives the round trip, and knows its own times and tokens."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.errors import RunError
from outrider.metrics import PrefillRecord, SlotStep, StepRecord
from outrider.results.counters import Counters
from outrider.results.equality.verdict import Verdict
from outrider.results.steps import Record, record_from_json, record_to_json
from outrider.results.unit import Answer, UnitResult, unit_id

seconds = st.floats(0, 100).map(lambda value: round(value, 9))
count = st.integers(0, 9999)
slots = st.builds(
    SlotStep,
    request=count,
    context_length=count,
    num_nodes=count,
    draft_depth=count,
    num_accepted=count,
    num_emitted=count,
    finished=st.booleans(),
)
steps = st.builds(
    StepRecord,
    step=count,
    num_rows=count,
    is_chain=st.booleans(),
    slots=st.lists(slots, max_size=3).map(tuple),
    propose_s=seconds,
    verify_s=seconds,
    accept_s=seconds,
    commit_s=seconds,
    host_s=seconds,
)
old_prefills = st.builds(
    PrefillRecord,
    requests=st.lists(count, max_size=3).map(tuple),
    num_tokens=count,
    target_s=seconds,
    proposer_s=seconds,
)
prefills = old_prefills | st.builds(
    PrefillRecord,
    requests=st.tuples(count, count),
    num_tokens=count,
    target_s=seconds,
    proposer_s=seconds,
    cached_tokens=st.tuples(count, count),
    waited_s=st.tuples(seconds, seconds),
    started=st.lists(count, max_size=2).map(tuple),
)
verdicts = st.builds(
    Verdict,
    kind=st.sampled_from(["exact", "tie", "violation"]),
    position=st.none() | count,
    margin=st.none() | seconds,
    noise=st.none() | seconds,
)
answers = st.builds(
    Answer,
    conversation=st.text(max_size=6),
    turn=count,
    request=count,
    seed=count,
    num_prompt_tokens=count,
    tokens=st.lists(count, max_size=4).map(tuple),
    finished=st.none() | st.just("eos"),
    ttft_s=st.none() | seconds,
    latency_s=st.none() | seconds,
    bursts=st.lists(count, max_size=3).map(tuple),
    start_s=st.none() | seconds,
    verdict=st.none() | verdicts,
)
counters = st.builds(
    Counters,
    num_generation_tokens=count,
    num_drafts=count,
    num_draft_tokens=count,
    num_accepted_tokens=count,
    num_accepted_tokens_per_pos=st.lists(count, max_size=3).map(tuple),
)
units = st.builds(
    UnitResult,
    unit=st.text(max_size=6),
    method=st.text(max_size=6),
    category=st.text(max_size=6),
    batch=count,
    temperature=seconds,
    repeat=count,
    conversations=st.lists(st.text(max_size=4), max_size=3).map(tuple),
    answers=st.lists(answers, max_size=2).map(tuple),
    steps=st.lists(steps, max_size=3).map(tuple),
    prefills=st.lists(prefills, max_size=2).map(tuple),
    counters=st.none() | counters,
    wall_s=seconds,
    state=st.sampled_from(["cold", "warm"]),
    memory_bytes=st.dictionaries(st.text(max_size=4), count, max_size=2),
)


@settings(deadline=None)
@given(units)
def test_a_unit_survives_the_round_trip(unit: UnitResult) -> None:
    line = unit.to_json()
    assert "\n" not in line
    assert UnitResult.from_json(line) == unit


@settings(deadline=None)
@given(steps | prefills)
def test_a_record_survives_the_round_trip(record: Record) -> None:
    line = record_to_json(record)
    assert "\n" not in line
    assert record_from_json(line) == record


def test_records_are_compact() -> None:
    record = StepRecord(117, 8, True, (SlotStep(3, 1510, 7, 7, 4, 5, False),), 1.5e-4, 0.0213456789, 3e-4, 2e-5, 6e-5)
    assert len(record_to_json(record)) < 130


def step(request: int, emitted: int, verify_s: float = 0.5, finished: bool = False) -> StepRecord:
    slot = SlotStep(request, 10, 4, 4, emitted - 1, emitted, finished)
    return StepRecord(1, 5, True, (slot,), 0.1, verify_s, 0.1, 0.1, 0.2)


def answer(request: int, num_tokens: int, ttft_s: float | None = 1.0, latency_s: float | None = 3.0) -> Answer:
    return Answer(
        conversation="a",
        turn=0,
        request=request,
        seed=0,
        num_prompt_tokens=5,
        tokens=tuple(range(num_tokens)),
        ttft_s=ttft_s,
        latency_s=latency_s,
    )


def unit(**changes: object) -> UnitResult:
    plain: dict[str, object] = {
        "unit": "u",
        "method": "m",
        "category": "c",
        "batch": 1,
        "temperature": 0.0,
        "repeat": 0,
        "conversations": ("a",),
        "answers": (answer(1, 5), answer(2, 3)),
        "wall_s": 7.0,
    }
    return UnitResult(**(plain | changes))  # type: ignore[arg-type]


def test_with_records_decoding_takes_the_steps() -> None:
    ran = unit(steps=(step(1, 3), step(1, 2), step(2, 3)))
    assert ran.decode_s == pytest.approx(3.0)
    assert ran.num_tokens == ran.num_decode_tokens == 8
    assert ran.first_bursts == {1: 3, 2: 3}


def test_without_records_decoding_is_what_follows_the_first_tokens() -> None:
    ran = unit(engine="transformers")
    assert ran.decode_s == pytest.approx(4.0)
    assert ran.num_decode_tokens == 6
    assert ran.first_bursts == {1: 1, 2: 1}
    assert unit(batch=2).decode_s is None
    assert unit(answers=(answer(1, 5), answer(2, 3, ttft_s=None))).decode_s is None


def test_units_that_did_the_same_work_have_the_same_key() -> None:
    assert unit(method="none", unit="v", wall_s=1.0).pair_key == unit().pair_key
    changes: list[dict[str, object]] = [
        {"category": "d"},
        {"conversations": ("b",)},
        {"batch": 2},
        {"temperature": 1.0},
        {"repeat": 1},
    ]
    assert len({unit(**change).pair_key for change in changes} | {unit().pair_key}) == 6


def test_names_of_units_are_unique_and_readable() -> None:
    assert unit_id("lookup", "editing", 4, 0.7, 1, ["e-1", "e-2", "e-3"]) == "lookup/editing/b4/t0.7/r1/e-1..e-3"
    assert unit_id("none", "code", 1, 0.0, 0, ["x"], engine="vllm") == "vllm:none/code/b1/t0/r0/x"
    assert unit_id("m", "code", 1, 0.0, 0, ["x"], state="warm") == "m+warm/code/b1/t0/r0/x"


@pytest.mark.parametrize("cut", [0, 1, 40, -2])
def test_a_line_that_was_cut_off_is_refused(cut: int) -> None:
    line = unit(steps=(step(1, 3),)).to_json()
    with pytest.raises(RunError, match="a unit cannot be read"):
        UnitResult.from_json(line[:cut])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"steps": [{"step": 1}]}, "a record is damaged"),
        ({"steps": [{"step": 1, "rows": 1, "chain": True, "s": [0] * 5, "slots": [[1, 2]]}]}, "six whole numbers"),
        ({"steps": [{"step": 1, "rows": 1, "chain": True, "s": [0] * 4, "slots": []}]}, "a record is damaged"),
        ({"steps": [3]}, "a record is damaged"),
        ({"steps": 3}, "a unit cannot be read"),
        ({"prefills": [{"prefill": [1], "tokens": "x", "s": [0, 0]}]}, "a record is damaged"),
        ({"wall_s": None}, "wall_s is None"),
    ],
)
def test_a_damaged_unit_is_refused(change: dict[str, object], says: str) -> None:
    with pytest.raises(RunError, match=says):
        UnitResult.from_json(json.dumps(json.loads(unit().to_json()) | change))


def test_a_line_that_is_no_record_is_refused() -> None:
    with pytest.raises(RunError, match="a record cannot be read"):
        record_from_json('{"step"')
    with pytest.raises(RunError, match="a record is damaged"):
        record_from_json("[]")


def served(*spans: tuple[float | None, float, float], batch: int = 4) -> UnitResult:
    """Answers by (start, time to the first token, latency), in seconds."""
    answers = [
        Answer(
            conversation="c",
            turn=0,
            request=at,
            seed=0,
            num_prompt_tokens=1,
            tokens=(1, 2, 3),
            start_s=start,
            ttft_s=first,
            latency_s=last,
        )
        for at, (start, first, last) in enumerate(spans)
    ]
    return UnitResult(
        unit="u",
        engine="vllm",
        method="m",
        category="c",
        batch=batch,
        temperature=0.0,
        repeat=0,
        conversations=("c",),
        answers=tuple(answers),
        wall_s=9.0,
    )


def test_decoding_at_a_server_lasts_while_any_answer_is_behind_its_first_tokens() -> None:
    assert served((0.0, 1.0, 3.0), (0.0, 2.0, 4.0), (6.0, 0.5, 1.0)).decode_s == 3.0 + 0.5
    assert served((5.0, 1.0, 2.0), (0.0, 1.0, 8.0)).decode_s == 7.0
    assert served((None, 1.0, 3.0), (0.0, 2.0, 4.0)).decode_s is None
    assert served((None, 1.0, 3.0), (None, 2.0, 4.0), batch=1).decode_s == 4.0
    assert served((0.0, 1.0, 3.0)).num_decode_tokens == 2
