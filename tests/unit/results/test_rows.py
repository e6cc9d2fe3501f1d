"""The result document: what is written is read back, and damage is named."""

import json
import math
from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.errors import RunError
from outrider.records.codec import dumps, from_plain, loads
from outrider.results.rows import SCHEMA, Lossless, Report, Row, Waterfall, from_json, to_json
from outrider.results.statistics import Interval, Percentiles

number = st.floats(-1e6, 1e6)
maybe = st.none() | number
intervals = st.builds(Interval, point=number, low=maybe, high=maybe)
rows = st.builds(
    Row,
    engine=st.text(max_size=5),
    method=st.text(max_size=5),
    category=st.text(max_size=5),
    batch=st.integers(1, 64),
    temperature=number,
    num_prompts=st.integers(0, 99),
    tau=maybe,
    tokens_per_s=maybe,
    acceptance_per_pos=st.none() | st.lists(number, max_size=3).map(tuple),
    speedup=st.none() | intervals,
    waterfall=st.none()
    | st.builds(Waterfall, ideal=number, with_verify=number, with_draft=number, with_host=number, measured=maybe),
    shares=st.none() | st.dictionaries(st.text(max_size=4), number, max_size=3),
    ttft_s=st.none() | st.builds(Percentiles, p50=number, p95=number, p99=number),
    memory_bytes=st.none() | st.dictionaries(st.text(max_size=4), st.integers(0, 2**40), max_size=3),
    lossless=st.builds(Lossless, verdict=st.sampled_from(["exact", "ties", "violated", "unverified"]), where=st.none()),
    state=st.sampled_from(["cold", "warm"]),
)
REPORT = Report(run="runs/1", target="tiny", dtype="bfloat16", device="cpu", commit=None)
ROW = {"engine": "outrider", "method": "m", "category": "c", "batch": 1, "temperature": 0.0, "num_prompts": 2}
PLAIN = {"schema": SCHEMA, "run": "r", "target": "t", "dtype": "d", "device": "cpu", "commit": "c", "rows": [ROW]}


@settings(deadline=None)
@given(st.lists(rows, max_size=3).map(tuple))
def test_a_report_survives_the_round_trip(some: tuple[Row, ...]) -> None:
    report = Report(run=None, target="t", dtype="d", device="cpu", commit="c", dirty=True, rows=some)
    line = to_json(report)
    assert "\n" not in line
    assert from_json(line) == report


def test_the_document_of_the_design_is_read() -> None:
    text = """{"schema": "outrider.bench/1", "run": "runs/2026", "target": "smollm2-135m", "dtype": "bfloat16",
     "device": "cpu", "commit": "abc",
     "rows": [{"engine": "outrider", "method": "lookup", "category": "editing", "batch": 1, "temperature": 0.0,
       "num_prompts": 12, "tokens_per_s": 101.3, "tau": 2.41, "mean_acceptance_length": 3.0, "draft_coverage": 0.7,
       "acceptance_per_pos": [0.8, 0.6], "speedup": {"point": 1.92, "low": 1.71, "high": 2.10},
       "predicted_speedup": 1.97, "break_even_tau": 1.2,
       "shares": {"propose": 0.01, "verify": 0.93, "accept": 0.03, "commit": 0.01, "host": 0.02},
       "lossless": {"verdict": "exact", "ties": 0, "violations": 0}}]}"""
    row = from_json(text).rows[0]
    assert row.speedup == Interval(point=1.92, low=1.71, high=2.10)
    assert row.lossless == Lossless(verdict="exact")
    assert row.ttft_s is None
    written = json.loads(to_json(from_json(text)))["rows"][0]
    assert written["draft_cost_ratio"] is None
    assert set(written) == {field.name for field in fields(Row)}


def test_fields_of_a_later_minor_version_are_ignored() -> None:
    later = PLAIN | {"schema": f"{SCHEMA}.7", "novelty": 1, "rows": [ROW | {"surprise": [1]}]}
    assert from_json(json.dumps(later)).rows[0].method == "m"


@pytest.mark.parametrize("schema", ["outrider.bench/2", "outrider.bench/10", "other/1"])
def test_another_schema_is_refused(schema: str) -> None:
    with pytest.raises(RunError, match=r"this version reads 'outrider.bench/1'"):
        from_json(json.dumps(PLAIN | {"schema": schema, "rows": 3}))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"batch": "1"}, r"Report\.rows\[0\]\.batch is '1' but must be a whole number"),
        ({"batch": True}, r"batch is True but must be a whole number"),
        ({"temperature": "hot"}, r"temperature is 'hot' but must be a number"),
        ({"temperature": None}, r"temperature is None but must be a number"),
        ({"method": 3}, r"method is 3 but must be a string"),
        ({"forced_length": 1}, r"forced_length is 1 but must be true or false"),
        ({"state": "tepid"}, r"state is 'tepid' but must be one of 'cold', 'warm'"),
        ({"acceptance_per_pos": 0.5}, r"acceptance_per_pos is 0.5 but must be a list"),
        ({"acceptance_per_pos": [0.5, "x"]}, r"acceptance_per_pos\[1\] is 'x'"),
        ({"speedup": 1.9}, r"speedup is 1.9 but must be an object"),
        ({"speedup": {"point": 1.9, "low": 1}}, r"speedup lacks the field 'high'"),
        ({"shares": [1]}, r"shares is \[1\] but must be an object"),
        ({"shares": {"propose": None}}, r"shares\.propose is None"),
    ],
)
def test_damage_is_named(change: dict[str, object], says: str) -> None:
    with pytest.raises(RunError, match=says):
        from_json(json.dumps(PLAIN | {"rows": [ROW | change]}))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"rows": []}'])
def test_what_is_no_report_is_refused(text: str) -> None:
    with pytest.raises(RunError):
        from_json(text)


def test_numbers_that_are_not_finite_become_null() -> None:
    assert dumps({"a": math.nan, "b": [math.inf, 1.5], "c": -math.inf}) == '{"a": null, "b": [null, 1.5], "c": null}'


def test_a_document_is_one_line_for_every_reader() -> None:
    text = "a\u2028b\u2029c\x85d\x0be\x1cf\r\n"
    assert len(dumps({text: text}).splitlines()) == 1
    assert json.loads(dumps({text: text})) == {text: text}


def test_an_integer_will_do_for_a_float() -> None:
    interval = loads(Interval, '{"point": 2, "low": 1, "high": null}')
    assert interval == Interval(point=2.0, low=1.0, high=None)
    assert isinstance(from_plain(Interval, {"point": 2, "low": 1, "high": 3}).point, float)
