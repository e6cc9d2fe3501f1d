"""Rows are what the records say, computed by hand and by running an engine."""

from dataclasses import replace
from typing import Any

import pytest

from outrider import Engine, Proposer, Target, load_proposer
from outrider.metrics import PrefillRecord, SlotStep, StepRecord
from outrider.results.counters import Counters
from outrider.results.derive import ALL, Machine, derive_row, derive_rows
from outrider.results.equality.verdict import Verdict
from outrider.results.rows import PLAIN, Lossless, Report, Row, from_json, to_json
from outrider.results.unit import Answer, UnitResult, unit_id
from outrider.sampling import SamplingParams
from outrider.testing import Adversary, Oracle, tiny_target


def step(request: int, nodes: int, accepted: int, verify_s: float = 1.0, propose_s: float = 0.0) -> StepRecord:
    slot = SlotStep(request, 9, nodes, nodes, accepted, accepted + 1, False)
    return StepRecord(1, nodes + 1, True, (slot,), propose_s, verify_s, 0.0, 0.0, 0.0)


def unit(steps: list[StepRecord], **changes: Any) -> UnitResult:
    num_tokens = sum(slot.num_emitted for record in steps for slot in record.slots)
    decode_s = sum(record.total_s for record in steps)
    answer = Answer(
        conversation="c-1",
        turn=0,
        request=1,
        seed=0,
        num_prompt_tokens=4,
        tokens=tuple(range(num_tokens)),
        ttft_s=1.5,
        latency_s=0.5 + decode_s,
    )
    fields: dict[str, Any] = {
        "method": PLAIN,
        "category": "chat",
        "batch": 1,
        "temperature": 0.0,
        "repeat": 0,
        "conversations": ("c-1",),
        "answers": (answer,),
        "steps": tuple(steps),
        "wall_s": 0.5 + decode_s,
    }
    fields |= changes
    name = (fields["method"], fields["category"], fields["batch"], fields["temperature"], fields["repeat"])
    return UnitResult(unit=unit_id(*name, fields["conversations"]), **fields)


def plain_unit(num_tokens: int, **changes: Any) -> UnitResult:
    return unit([step(1, 0, 0)] * num_tokens, **changes)


def drafted_unit(**changes: Any) -> UnitResult:
    """Six tokens in three steps of 1.3 plain forwards."""
    steps = [step(1, 3, 2, 1.2, 0.1), step(1, 3, 1, 1.2, 0.1), step(1, 3, 0, 1.2, 0.1)]
    return unit(steps, **{"method": "m"} | changes)


def row_of(rows: list[Row], method: str, category: str = "chat") -> Row:
    return next(row for row in rows if (row.method, row.category) == (method, category))


def test_the_spread_of_repeats_is_over_their_median() -> None:
    """Rates 1, 1 / 1.25 and 1 / 1.6 tokens per second: (1 - 0.625) / 0.8."""
    units = [unit([step(1, 0, 0, seconds)] * 6, repeat=at) for at, seconds in enumerate((1.0, 1.25, 1.6))]
    assert row_of(derive_rows(units), PLAIN).repeat_spread == pytest.approx(0.375 / 0.8)
    assert row_of(derive_rows(units[:1]), PLAIN).repeat_spread is None


def test_a_cell_by_hand() -> None:
    plain, drafted = plain_unit(6), drafted_unit(memory_bytes={"proposer_cache": 5})
    row = row_of(derive_rows([plain, drafted]), "m")
    assert (row.num_prompts, row.num_repeats, row.num_tokens) == (1, 1, 6)
    assert row.tau == 2.0
    assert row.mean_acceptance_length == 2.0
    assert row.draft_coverage == 1.0
    assert row.acceptance_per_pos == pytest.approx((2 / 3, 1 / 3, 0))
    assert row.wasted_rows == pytest.approx(2 / 3)
    assert row.verify_cost_ratio == pytest.approx(1.2)
    assert row.draft_cost_ratio == pytest.approx(0.1)
    assert row.break_even_tau == pytest.approx(1.3)
    assert row.predicted_speedup == pytest.approx(2 / 1.3)
    assert row.speedup is not None
    assert row.speedup.point == pytest.approx(6 / 3.9)
    assert row.speedup.low is None
    assert row.speedup_end_to_end is not None
    assert row.speedup_end_to_end.point == pytest.approx(6.5 / 4.4)
    assert row.total_speedup == pytest.approx(6 / 3.9)
    assert row.tokens_per_s == pytest.approx(6 / 3.9)
    assert row.tokens_per_s_end_to_end == pytest.approx(6 / 4.4)
    assert row.waterfall is not None
    assert row.waterfall.measured == row.speedup.point
    assert row.shares == pytest.approx({"propose": 0.3 / 3.9, "verify": 3.6 / 3.9, "accept": 0, "commit": 0, "host": 0})
    assert row.ttft_s is not None
    assert row.ttft_s.p50 == 1.5
    assert row.tpot_s is not None
    assert row.tpot_s.p50 == pytest.approx(2.9 / 3), "three tokens follow the first burst of three"
    assert row.tokens_per_s_per_request == pytest.approx(3 / 2.9)
    assert row.burst_tokens is not None
    assert row.burst_tokens.p50 == 2
    assert row.memory_bytes == {"proposer_cache": 5}
    assert row.lossless.verdict == "unverified"


def test_plain_decoding_is_its_own_reference() -> None:
    row = row_of(derive_rows([plain_unit(6)], Machine(weight_bytes=300, bytes_per_s=600.0)), PLAIN)
    assert row.tau == 1
    assert row.speedup is not None
    assert row.speedup.point == row.predicted_speedup == row.break_even_tau == 1
    assert row.mean_acceptance_length is None
    assert row.bandwidth_share == 0.5
    assert row.lossless == Lossless(verdict="exact")
    assert row.memory_bytes is None


def test_units_are_compared_with_their_own_counterpart_only() -> None:
    slow_repeat = [replace(record, verify_s=10.0) for record in plain_unit(6).steps]
    units = [
        plain_unit(6, repeat=0),
        unit(slow_repeat, repeat=1),
        unit(slow_repeat, repeat=2),
        plain_unit(6, repeat=0, batch=4),
        drafted_unit(repeat=0),
        drafted_unit(repeat=3),
    ]
    row = row_of(derive_rows(units), "m")
    assert row.speedup is not None
    assert row.speedup.point == pytest.approx(6 / 3.9)
    assert row.num_repeats == 2
    lonely = row_of(derive_rows([drafted_unit()]), "m")
    assert lonely.speedup is lonely.predicted_speedup is lonely.total_speedup is None
    assert lonely.tau == 2


def test_time_is_taken_per_token_of_the_run_itself() -> None:
    row = row_of(derive_rows([plain_unit(12), drafted_unit()]), "m")
    assert row.speedup is not None
    assert row.speedup.point == pytest.approx(6 / 3.9)


def test_cells_categories_and_the_sum_of_them() -> None:
    units = [
        make(category=category, conversations=(f"{category}-1",), **changes)
        for category in ("chat", "code")
        for make in (lambda **fields: plain_unit(6, **fields), drafted_unit)
        for changes in ({}, {"temperature": 1.0})
    ]
    rows = derive_rows(units)
    cells = [(row.method, row.temperature, row.category) for row in rows]
    assert cells == [
        (method, temperature, category)
        for method, temperature in ((PLAIN, 0.0), (PLAIN, 1.0), ("m", 0.0), ("m", 1.0))
        for category in ("chat", "code", ALL)
    ]
    total = row_of(rows, "m", ALL)
    assert total.num_prompts == 2
    assert total.speedup is not None
    assert total.speedup.low == pytest.approx(6 / 3.9)


def test_warm_and_forced_runs_are_cells_of_their_own() -> None:
    units = [
        plain_unit(6),
        drafted_unit(),
        drafted_unit(state="warm"),
        drafted_unit(forced_length=True),
    ]
    rows = derive_rows(units)
    assert [(row.state, row.forced_length) for row in rows[1:]] == [("cold", False), ("warm", False), ("cold", True)]
    assert rows[2].speedup is not None
    assert rows[3].speedup is None, "natural and forced lengths are not compared"
    with pytest.raises(AssertionError, match="one cell"):
        derive_row(units, [], "chat")


def test_an_external_engine_has_times_and_no_counts() -> None:
    external = replace(plain_unit(6, engine="transformers"), steps=())
    row = next(row for row in derive_rows([plain_unit(6), external]) if row.engine == "transformers")
    assert row.tau is row.verify_cost_ratio is row.shares is row.burst_tokens is None
    assert row.speedup is not None
    assert row.speedup.point == pytest.approx(1), "five tokens in five seconds"
    assert row.tokens_per_s == pytest.approx(1)
    assert row.lossless.verdict == "unverified"


def test_an_engine_without_arrival_times_is_compared_end_to_end() -> None:
    bare = replace(plain_unit(6).answers[0], ttft_s=None, latency_s=None)
    external = replace(plain_unit(6, engine="other"), steps=(), answers=(bare,), wall_s=13.0)
    row = next(row for row in derive_rows([plain_unit(6), external]) if row.engine == "other")
    assert row.speedup is row.tokens_per_s is row.total_speedup is row.ttft_s is None
    assert row.speedup_end_to_end is not None
    assert row.speedup_end_to_end.point == pytest.approx(0.5)


def test_an_empty_answer_is_left_out_of_ratios() -> None:
    row = row_of(derive_rows([plain_unit(0), drafted_unit()]), "m")
    assert row.speedup is row.speedup_end_to_end is row.predicted_speedup is None


def judged(base: UnitResult, *verdicts: Verdict | None) -> UnitResult:
    answers = tuple(replace(base.answers[0], turn=turn, verdict=verdict) for turn, verdict in enumerate(verdicts))
    return replace(base, answers=answers)


@pytest.mark.parametrize(
    ("kinds", "verdict"),
    [
        (["exact", "exact"], "exact"),
        (["exact", "tie"], "ties"),
        (["tie", "violation"], "violated"),
        (["exact", None], "unverified"),
        (["violation", None], "violated"),
        ([None, None], "unverified"),
    ],
)
def test_a_cell_is_lossless_only_if_every_answer_was_shown_to_be(kinds: list[Any], verdict: str) -> None:
    verdicts = [None if kind is None else Verdict(kind=kind, position=3, margin=1.0, noise=0.5) for kind in kinds]
    row = derive_row([judged(drafted_unit(), *verdicts)], [], "chat")
    assert row.lossless.verdict == verdict
    assert row.lossless.ties == kinds.count("tie")
    if verdict == "violated":
        assert row.lossless.where is not None
        assert row.lossless.where.startswith(f"m/chat/b1/t0/r0/c-1 turn {kinds.index('violation')}, token 3")


def measured(target: Target, proposer: Proposer, method: str, num_tokens: int = 10) -> UnitResult:
    """A unit from a real engine: two conversations at once."""
    records: list[StepRecord | PrefillRecord] = []
    prompts = [[1, 2, 3], [7, 5]]
    engine = Engine(target, proposer, max_batch=2, record=records.append)
    completions = engine.generate(prompts, SamplingParams(max_tokens=num_tokens, ignore_eos=True))
    return UnitResult(
        unit=method,
        method=method,
        category="chat",
        batch=2,
        temperature=0.0,
        repeat=0,
        conversations=("a", "b"),
        answers=tuple(
            Answer(
                conversation=name,
                turn=0,
                request=completion.request + 1,
                seed=0,
                num_prompt_tokens=len(completion.prompt),
                tokens=completion.tokens,
                finished=completion.finished,
                verdict=Verdict(kind="exact", num_compared=num_tokens),
            )
            for name, completion in zip("ab", completions, strict=True)
        ),
        steps=tuple(record for record in records if isinstance(record, StepRecord)),
        prefills=tuple(record for record in records if isinstance(record, PrefillRecord)),
        wall_s=1.0,
    )


def test_a_real_engine_from_records_to_the_document() -> None:
    target = tiny_target()
    units = [
        measured(target, load_proposer(PLAIN, target), PLAIN),
        measured(target, Oracle(target, 4).proposer(), "oracle"),
        measured(target, Adversary(target, 4).proposer(), "adversary"),
    ]
    read = [UnitResult.from_json(unit.to_json()) for unit in units]
    rows = derive_rows(read)
    oracle, adversary = row_of(rows, "oracle"), row_of(rows, "adversary")
    assert oracle.tau == 5
    assert adversary.tau == 1
    assert adversary.wasted_rows == 1
    assert all(row.lossless == Lossless(verdict="exact", num_compared=20) for row in rows)
    for row in rows:
        assert row.speedup is not None
        assert row.predicted_speedup is not None
        assert row.shares is not None
        assert sum(row.shares.values()) == pytest.approx(1)
    report = Report(run=None, target="tiny", dtype="float64", device="cpu", commit=None, rows=tuple(rows))
    assert from_json(to_json(report)) == report


def served_unit(method: str, tokens: tuple[int, ...], bursts: tuple[int, ...], **more: Any) -> UnitResult:
    """From a server: a token each 0.1 s of its steps."""
    answer = Answer(
        conversation="c-1",
        turn=0,
        request=1,
        seed=0,
        num_prompt_tokens=4,
        tokens=tokens,
        bursts=bursts,
        ttft_s=0.5,
        latency_s=0.5 + 0.1 * (len(bursts) - 1),
    )
    return replace(plain_unit(1, engine="vllm", method=method), steps=(), answers=(answer,), **more)


def test_a_serving_engine_is_compared_with_its_own_plain_decoding() -> None:
    counters = Counters(
        num_generation_tokens=7,
        num_drafts=2,
        num_draft_tokens=4,
        num_accepted_tokens=4,
        num_accepted_tokens_per_pos=(2, 2),
    )
    plain = served_unit(PLAIN, (1, 2, 3, 4, 5, 6, 7), (1,) * 7, counters=Counters(num_generation_tokens=7))
    own = served_unit("m", (1, 2, 3, 4, 5, 6, 7), (1, 3, 3), counters=counters)
    rows = {(row.engine, row.method): row for row in derive_rows([plain_unit(6), plain, own])}
    row = rows["vllm", "m"]
    assert row.speedup is not None
    assert row.speedup.point == pytest.approx(3)
    assert row.tau == 3
    assert row.mean_acceptance_length == 3
    assert row.lossless == Lossless(verdict="exact", num_compared=7)
    assert row.burst_tokens is not None
    assert row.burst_tokens.p50 == 3
    assert rows["vllm", PLAIN].lossless.verdict == "exact"
    assert rows["vllm", PLAIN].equality is None
    report = Report(run=None, target="t", dtype="float32", device="server", commit=None, rows=tuple(rows.values()))
    assert from_json(to_json(report)) == report


def test_a_serving_engine_without_its_plain_decoding_has_no_speedup() -> None:
    row = next(row for row in derive_rows([plain_unit(6), served_unit("m", (1, 2), (1, 1))]) if row.engine == "vllm")
    assert row.speedup is None
    assert row.equality is None
    assert row.tau is None
    assert row.lossless.verdict == "unverified"
