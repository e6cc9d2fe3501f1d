"""Costs that a server shows, bounds and the verdict on it, each against numbers worked out by hand."""

from typing import NamedTuple

import pytest

from outrider.errors import ConfigError
from outrider.proposer import ProposerSpec
from outrider.results.statistics import Interval
from outrider.results.unit import Answer, UnitResult, unit_id
from outrider.sampling import SamplingParams
from outrider.tuning.candidates import Family
from outrider.tuning.config import TuneConfig
from outrider.tuning.endpoint.bounds import bounds_of
from outrider.tuning.endpoint.costs import BytesOfDrafter, ServedCosts, served_costs
from outrider.tuning.endpoint.servers import chosen
from outrider.tuning.endpoint.verdict import Bound, Verdict, verdict_of
from outrider.tuning.prices.predict import Pick, Predicted
from outrider.tuning.replays.kept import Replays
from outrider.tuning.replays.known import KnownText
from outrider.tuning.replays.replay import Reach
from outrider.tuning.replays.texts import Text


def answer(start_s: float, first_s: float, last_s: float, tokens: int) -> Answer:
    return Answer(
        conversation="a",
        turn=0,
        request=0,
        seed=0,
        num_prompt_tokens=5,
        tokens=(1,) * tokens,
        ttft_s=first_s,
        latency_s=last_s,
        start_s=start_s,
    )


def unit(batch: int, *answers: Answer) -> UnitResult:
    return UnitResult(
        unit=unit_id("none", "x", batch, 0.0, 0, [f"a{batch}"], engine="endpoint"),
        engine="endpoint",
        method="none",
        category="x",
        batch=batch,
        temperature=0.0,
        repeat=0,
        conversations=("a",),
        answers=answers,
        wall_s=1.0,
    )


def test_costs_are_read_off_plain_decoding() -> None:
    alone = unit(1, answer(0.0, 0.1, 0.3, 21))  # 20 tokens in 0.2 s
    # 1.0 s of two requests in 0.75 s, 40 tokens: 4/3 rows, 25 ms; the third waits for them in a full server
    both = unit(2, answer(0.0, 0.25, 0.75, 21), answer(0.0, 0.5, 1.0, 21))
    costs = served_costs([alone, both])
    assert costs is not None
    assert costs.rows == pytest.approx([1.0, 4 / 3])
    assert costs.seconds == pytest.approx([0.010, 0.025])
    assert costs.forward_s(1, 1, 100.0) == pytest.approx(0.010)
    assert costs.forward_s(1, 7 / 6, 100.0) == pytest.approx(0.0175)
    assert costs.forward_s(1, 5 / 3, 100.0) == pytest.approx(0.040)  # the line goes on
    assert served_costs([]) is None


def test_a_full_server_shows_no_further_rows_and_more_rows_cost_no_less() -> None:
    alone = unit(1, answer(0.0, 0.1, 0.3, 21))
    queued = unit(2, answer(0.0, 0.1, 0.3, 21), answer(0.0, 0.3, 0.5, 21))  # one behind the other
    costs = served_costs([alone, queued])
    assert costs is not None
    assert costs.rows == [1.0]
    assert costs.forward_s(4, 16, 0.0) == pytest.approx(0.010)
    assert ServedCosts({1: 0.010, 4: 0.009}).forward_s(1, 3, 0.0) == pytest.approx(0.010)


def test_a_drafter_reads_its_weights_at_every_level() -> None:
    target = ServedCosts({1: 0.010, 4: 0.013})
    assert BytesOfDrafter(0.1, target).propose_s(4, 12, 3) == pytest.approx(3 * 0.1 * 0.013)


class Fake(NamedTuple):
    """A proposer as far as its size is asked."""

    spec: ProposerSpec


def test_a_lookup_with_no_more_rows_gains_tau_over_tau() -> None:
    text = Text("a", 0, KnownText((1, 2), tuple(range(8))), SamplingParams(max_tokens=8))
    # drafts of three tokens at every position, all right: depth 1 takes 4 steps, depth 3 takes 2
    reach = Reach(lengths=(3,) * 8, right=(3,) * 8)
    replays = Replays()
    replays.reaches = {"free": {text.key: reach}, "heavy": {text.key: reach}}
    families = [
        Family(base="free", depths=(1, 3), deepest=Fake(ProposerSpec(max_nodes=3))),  # type: ignore[arg-type]
        Family(base="heavy", depths=(1,), deepest=Fake(ProposerSpec(max_nodes=1, num_bytes=9))),  # type: ignore[arg-type]
    ]
    assert bounds_of(families, replays, {text.key: text}, tau=1.6, rows=2.5) == [
        Bound("free:num_nodes=1", 2.0, pytest.approx(1.25))
    ]
    found = bounds_of(families, replays, {text.key: text}, tau=1.6, rows=4.0)
    assert [(one.text, one.tau) for one in found] == [("free:num_nodes=1", 2.0), ("free:num_nodes=3", 4.0)]


def of(*points: float) -> dict[int, Interval]:
    return {batch: Interval(point=point, low=None, high=None) for batch, point in zip((1, 4), points, strict=True)}


def foreseen(text: str, *points: float) -> Predicted:
    return Predicted(choice=Pick(text, "fixed"), base=text, speedups=dict(zip((1, 4), points, strict=True)))


def judged(
    *,
    drafts: bool = True,
    now: dict[int, Interval] | None = None,
    predicted: Predicted | None = None,
    bound: Bound | None = None,
) -> Verdict:
    return verdict_of(
        drafts=drafts,
        now=now or {},
        tau=1.6,
        predicted=[predicted] if predicted else [],
        bounds=[bound] if bound else [],
    )


def test_a_server_that_drafts_is_kept_changed_or_turned_off() -> None:
    kept = judged(now=of(1.4, 0.9), predicted=foreseen("m", 1.17, 1.17))  # 1.05 sqrt(1.26) is 1.18
    assert kept.sentence == (
        "Use what the server does now: 1.40 times the speed at 1 request, 0.90 at 4 of plain decoding; off from 4 "
        "requests on."
    )
    assert (kept.method, kept.off_from, kept.is_prediction) == ("served", 4, False)
    off = judged(now=of(1.1, 0.8), predicted=foreseen("m", 1.04, 1.04))  # sqrt(0.88) is below 1.02
    assert off.sentence.startswith("Leave it off: what the server does now is 1.10 times the speed at 1 request, 0.80 ")
    assert (off.method, off.is_prediction) == ("none", False)
    change = judged(now=of(1.1, 1.1), predicted=foreseen("m", 1.3, 1.1))  # sqrt(1.43) is 1.09 times 1.1
    assert change.sentence == (
        "Change to m: predicted, not verified, 1.30 times the speed at 1 request, 1.10 at 4 of plain decoding; what "
        "the server does now is 1.10 times the speed at 1 request, 1.10 at 4 of plain decoding."
    )
    assert (change.method, change.off_from, change.is_prediction) == ("m", None, True)
    assert judged(now=of(1.1, 1.1), predicted=foreseen("m", 1.15, 1.15)).method == "served"  # less than 1.05 times


def test_a_server_that_does_not_draft_is_told_what_would_pay() -> None:
    change = judged(drafts=False, predicted=foreseen("m", 1.3, 0.9))
    assert change.sentence.startswith(
        "Change to m: predicted, not verified, 1.30 times the speed at 1 request, 0.90 at 4"
    )
    assert change.sentence.endswith("; off from 4 requests on; the server does not draft now.")
    off = judged(drafts=False, predicted=foreseen("m", 1.04, 1.04))
    assert off.sentence.endswith(
        "is 1.04 times the speed at 1 request, 1.04 at 4 of plain decoding, which is not worth it."
    )
    assert judged(drafts=False).sentence.startswith("Leave it off: the server does not draft, and no method")


def test_drafts_alone_are_never_called_a_gain() -> None:
    alone = judged(bound=Bound("m", 1.6, 1.0))
    assert alone.sentence == (
        "Keep what the server does now, unproven: its drafts pay while a step costs less than 1.60 plain ones; plain "
        "decoding cannot be measured on a server that drafts, so give the same server without speculation as a second "
        "--endpoint none=URL."
    )
    assert (alone.method, alone.speedups) == ("served", ())
    better = judged(bound=Bound("m", 2.0, 1.25))
    assert better.sentence.startswith("Change to m: predicted, not verified, at least 1.25 times the speed of what the")
    assert "what it gains over plain decoding is unknown" in better.sentence


def test_servers_are_told_apart_by_their_labels() -> None:
    main, plain = chosen(("none=http://b/v1", "http://a/v1"))
    assert (main.url, plain and plain.url) == ("http://a/v1", "http://b/v1")
    assert chosen(("none=http://b/v1",)).plain is None
    with pytest.raises(ConfigError, match="tune looks at one server"):
        chosen(("http://a/v1", "other=http://b/v1"))
    with pytest.raises(ConfigError, match="leave out --hardware or --endpoint"):
        TuneConfig(endpoints=("http://a/v1",), hardware="h100")
