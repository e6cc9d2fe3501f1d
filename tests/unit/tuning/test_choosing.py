"""Settings, prompts, shares of the time, predictions and the decision, each against numbers worked out by hand."""

from dataclasses import replace
from math import log
from pathlib import Path

import pytest

from outrider.costs.tables import TargetCosts
from outrider.errors import ConfigError
from outrider.metrics import SlotStep, StepRecord
from outrider.planning.check import CostTables
from outrider.planning.predict import FreeDrafts
from outrider.results.rows import Waterfall
from outrider.results.unit import Answer, UnitResult, unit_id
from outrider.targets import load_target
from outrider.testing.directory import write_tiny_model
from outrider.testing.simulation import TableCosts
from outrider.tuning.candidates import Family, Setting, find_candidates
from outrider.tuning.config import TuneConfig
from outrider.tuning.outcome.decide import OFF, decide, limit_of, predicted_decision
from outrider.tuning.outcome.sentence import sentence_of
from outrider.tuning.prices.forecast import Forecasts
from outrider.tuning.prices.predict import Pick, Predicted, predicted_choices, promise_of, score_of, speedups_of
from outrider.tuning.prices.pricing import priced
from outrider.tuning.prompts import cells_for, sampled
from outrider.tuning.schedule import shortlist


def unit(method: str, seconds: float, batch: int = 1, conversation: str = "a", tokens: int = 10) -> UnitResult:
    step = StepRecord(
        step=1,
        num_rows=1,
        is_chain=True,
        slots=(SlotStep(0, 5, 0, 0, 0, tokens, True),),
        propose_s=0.0,
        verify_s=seconds,
        accept_s=0.0,
        commit_s=0.0,
        host_s=0.0,
    )
    answer = Answer(conversation=conversation, turn=0, request=0, seed=0, num_prompt_tokens=5, tokens=(1,) * tokens)
    return UnitResult(
        unit=unit_id(method, "x", batch, 0.0, 0, [conversation]),
        method=method,
        category="x",
        batch=batch,
        temperature=0.0,
        repeat=0,
        conversations=(conversation,),
        answers=(answer,),
        steps=(step,),
        wall_s=seconds,
    )


def predicted(text: str, budget: str, *speedups: float) -> Predicted:
    pick = Pick(text, "auto" if budget == "auto" else "fixed")
    return Predicted(choice=pick, base=text.partition(":")[0], speedups=dict(zip((1, 4), speedups, strict=True)))


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1h", 3600), ("45", 45), ("1.5m", 90)])
def test_time_is_read(text: str, seconds: float) -> None:
    assert TuneConfig(time=text).seconds == seconds


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"time": "10s"}, "less than the 30s"),
        ({"time": "soon"}, "is no time; write it as 90s, 10m or 1h"),
        ({"time": "1000h"}, "longer than a week"),
        ({"concurrency": ()}, "concurrency is empty"),
        ({"concurrency": (0,)}, "concurrency=0 must be between 1 and 256"),
        ({"temperature": -1.0}, "temperature=-1.0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TuneConfig(**settings)  # type: ignore[arg-type]


def test_every_beginning_of_the_sample_is_balanced(tmp_path: Path) -> None:
    target = load_target(str(write_tiny_model(tmp_path / "model", max_positions=8192)), dtype="float64")
    sample = sampled(TuneConfig(), target)
    first = [one.category for one in sample.conversations[: sample.num_categories]]
    assert len(set(first)) == len(first) == 10
    waves = sample.waves(16)
    assert [len(wave) for wave in waves[:2]] == [20, 10]
    assert [one.category for one in waves[1]] == first
    assert sampled(TuneConfig(), target) == sample != sampled(TuneConfig(seed=1), target)


def test_categories_that_do_not_fill_a_batch_are_mixed(tmp_path: Path) -> None:
    target = load_target(str(write_tiny_model(tmp_path / "model", max_positions=8192)), dtype="float64")
    config = TuneConfig(concurrency=(1, 2, 16))
    cells = cells_for(config, sampled(config, target).conversations[:19])
    assert [(cell.batch, cell.category) for cell in cells if cell.batch > 1] == [(16, "mixed"), (2, "mixed")]
    assert [len(group) for cell in cells if cell.batch == 16 for group in cell.groups] == [19]
    assert sum(cell.batch == 1 for cell in cells) == 10
    full = cells_for(replace(config, concurrency=(2, 64)), sampled(config, target).conversations[:20])
    assert {cell.batch for cell in full} == {2}
    assert len(full) == 10


def test_prompts_that_are_too_long_are_refused(tmp_path: Path) -> None:
    target = load_target(str(write_tiny_model(tmp_path / "model", max_positions=40)), dtype="float64")
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "' + "x" * 60 + '"}\n')
    with pytest.raises(ConfigError, match="no prompt leaves room for an answer: all 1 have more than"):
        sampled(TuneConfig(prompts=(str(prompts),)), target)


def test_a_promise_is_the_best_depth_or_none() -> None:
    shallow, deep, tree = Setting("m:num_nodes=1", "m", 1), Setting("m:num_nodes=2", "m", 2), Setting("t", "t", 0)
    settings = {shallow: {1: 1.2, 4: 0.9}, deep: {1: 1.1, 4: 0.5}, tree: {1: 2.0, 4: 0.5}}
    assert promise_of(deep, settings) == pytest.approx(1.2**0.5)
    assert promise_of(tree, settings) == pytest.approx(2.0**0.5)
    found = predicted_choices(settings, {deep: {1: 1.15, 4: 0.99}})
    assert [one.choice for one in found] == [
        Pick("m:num_nodes=2", "auto"),
        Pick("m:num_nodes=1", "fixed"),
        Pick("t", "fixed"),
        Pick("m:num_nodes=2", "fixed"),
    ]


def test_speedups_are_geometric_means_over_groups() -> None:
    plain = [unit("none", 1.0), unit("none", 1.0, conversation="b"), unit("none", 3.0, batch=4)]
    own = [unit("m", 0.5), unit("m", 2.0, conversation="b"), unit("m", 2.0, batch=4)]
    assert speedups_of(own, plain) == pytest.approx({1: 1.0, 4: 1.5})
    assert score_of({1: 4.0, 4: 1.0}) == pytest.approx(2.0)


def test_a_prediction_is_compared_on_the_groups_that_were_measured() -> None:
    a, b = (1, ("a",)), (1, ("b",))
    setting = Setting("m:num_nodes=2", "m", 2)
    found = Forecasts(
        speedups={setting: {1: 1.0}},
        plain=[],
        depths={},
        gains={setting.text: {a: log(4.0), b: log(0.25)}, f"{setting.text} auto": {a: log(2.0), b: log(1.5)}},
    )
    assert found.speedup_on(Pick(setting.text, "fixed"), [a]) == pytest.approx(4.0)
    assert found.speedup_on(Pick(setting.text, "fixed"), [a, b]) == pytest.approx(1.0)
    assert found.speedup_on(Pick(setting.text, "auto"), [b]) == pytest.approx(1.5)


def test_the_best_score_is_taken_and_says_where_it_is_off() -> None:
    plain = [unit("none", 1.0), unit("none", 1.0, batch=4)]
    own = [unit("m:num_nodes=1 auto", 0.5), unit("m:num_nodes=1 auto", 1.0, batch=4)]
    other = [unit("m:num_nodes=1", 0.5), unit("m:num_nodes=1", 1.25, batch=4)]
    guesses = [predicted("m:num_nodes=1", "auto", 2.1, 1.0), predicted("m:num_nodes=1", "fixed", 2.1, 0.7)]
    found = decide([*plain, *own, *other], guesses, (1, 4))
    assert found is not None
    assert found.choice == Pick("m:num_nodes=1", "auto")
    assert [round(one.point, 6) for one in found.speedups] == [2.0, 1.0]
    assert found.off_from == 4
    said = sentence_of(found, is_prediction=False)
    assert said == (
        "Use m:num_nodes=1 with --budget auto: 2.00 times the speed at 1 request, 1.00 at 4 of plain decoding; "
        "off from 4 requests on."
    )


def test_a_gain_within_the_noise_is_left_off() -> None:
    plain = [unit("none", 1.0), unit("none", 1.0, batch=4)]
    own = [unit("m:num_nodes=1", 0.99), unit("m:num_nodes=1", 0.99, batch=4)]
    found = decide([*plain, *own], [predicted("m:num_nodes=1", "fixed", 1.3, 1.2)], (1, 4))
    assert found is not None
    assert found.choice == OFF
    assert sentence_of(found, is_prediction=False).startswith("Leave it off: the best that was found, m:num_nodes=1")


def test_nothing_is_decided_by_half_of_the_loads() -> None:
    units = [unit("none", 1.0), unit("m:num_nodes=1", 0.5)]
    guesses = [predicted("m:num_nodes=1", "fixed", 1.3, 1.2)]
    assert decide(units, guesses, (1, 4)) is None
    assert predicted_decision(guesses, (1, 4)).choice == Pick("m:num_nodes=1", "fixed")
    assert predicted_decision([], (1, 4)).choice == OFF


def test_the_largest_factor_is_the_limit() -> None:
    falls = Waterfall(ideal=2.0, with_verify=2.0 / 1.2, with_draft=2.0 / 1.32, with_host=1.5, measured=1.5)
    assert limit_of(falls, 3) == "acceptance: tau is 2.00 of at most 4 (a factor of 2.00)"
    dear = replace(falls, with_verify=0.5, with_draft=0.4)
    assert limit_of(dear, 3) == "the cost of verifying more rows (a factor of 4.00)"


@pytest.mark.parametrize(("seconds", "count", "share"), [(59.0, 6, 1.0), (43.0, 4, 1.0), (13.0, 2, 0.5)])
def test_as_many_choices_as_fit_are_verified(seconds: float, count: int, share: float) -> None:
    # a pass takes 10 s and a fifth more; six choices take 3.5 + 4 / 3 passes, four 2.5 + 1, two 1.5 + 2 / 3
    guesses = [predicted(f"m{index}:num_nodes=1", "fixed", 1.5 - 0.01 * index, 1.0) for index in range(9)]
    found = shortlist(guesses, [unit("none", 4.0), unit("none", 5.0, batch=4)], seconds, 0.5)
    assert [choice.text for choice in found.choices] == [f"m{index}:num_nodes=1" for index in range(count)]
    assert found.share == pytest.approx(share)


class _Book:
    """A book of costs that notes what was timed."""

    def __init__(self) -> None:
        self.timed: list[str] = []

    def plain(self) -> FreeDrafts:
        return FreeDrafts()

    def known(self, family: Family) -> None:
        return None

    def measure(self, family: Family) -> FreeDrafts:
        self.timed.append(family.base)
        return FreeDrafts()


def test_a_family_that_cannot_win_is_not_timed(tmp_path: Path) -> None:
    target = load_target(str(write_tiny_model(tmp_path / "model")), dtype="float64")
    proposer = find_candidates(target).families[0].deepest
    families = [Family(base=base, depths=(), deepest=proposer) for base in ("low", "high", "middle")]
    bounds, real = {"low": 1.2, "high": 1.7, "middle": 1.5}, {"low": 1.1, "high": 1.4, "middle": 1.3}
    book, seen = _Book(), set[str]()

    def forecast(asked: object, tables: CostTables) -> Forecasts:
        [family] = asked or [None]  # type: ignore[misc]
        if family is None:
            return Forecasts(speedups={}, plain=[], depths={})
        scores = real if family.base in seen else bounds
        seen.add(family.base)
        return Forecasts(speedups={family.settings[0]: {1: scores[family.base]}}, plain=[], depths={})

    found = priced(families, book, _no_costs(), forecast, end=float("inf"), tell=lambda words: None)  # type: ignore[arg-type]
    assert book.timed == ["high", "middle"]
    assert [setting.base for setting in found.forecasts.speedups] == ["high", "middle"]
    assert found.notes == ("not timed, since their scores with free drafts are below the best: low (1.20)",)


def _no_costs() -> TargetCosts:
    return TableCosts({1: 1.0, 2: 1.0})
